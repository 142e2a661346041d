"""The commands of `dallegan COMMAND`, one module each."""
