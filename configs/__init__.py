"""Presets: `dallegan train NAME` trains the one that `config()` in the module NAME returns."""
