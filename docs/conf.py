"""Configures Sphinx. Build with: sphinx-build -W docs docs/_build."""

import re

import dallegan

project = "dallegan"
author = "The dallegan authors"
version = release = dallegan.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dallegan"
default_role = "code"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
templates_path: list[str] = []


def escape(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Escapes reStructuredText's markup in docstrings, which are plain text with code in backticks."""
    for i, line in enumerate(lines):
        pieces = re.split(r"(`[^`]*`)", line)
        lines[i] = "".join(
            piece if piece.startswith("`") else re.sub(r"([*|_@\\])", r"\\\1", piece) for piece in pieces
        )


def setup(app: object) -> None:
    """Connects `escape`, before napoleon reads the sections of a docstring."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # type: ignore[attr-defined]
