"""Sphinx configuration of mol's documentation; `make docs` builds it with every broken link an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mol import __version__
from mol.config.methods import METHODS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent

default_role = "code"
project = "mol"
author = "The mol authors"
copyright = "The mol authors, Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"mol {release}"
html_show_sourcelink = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
napoleon_numpy_docstring = False


def _methods(*arguments: str) -> str:
    """Return what `mol-merge methods` prints."""
    command = [Path(sys.executable).with_name("mol-merge"), "methods", *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"})
    return printed.stdout.strip()


def _write_methods(_: Sphinx) -> None:
    """Write one page per merge method and their index, from the table that the command prints."""
    names = "\n".join(METHODS)
    # The output has a language of its own: its comments would be taken for prompts of root.
    pages = {
        name: f"# `{name}`\n\n```console\n$ mol-merge methods {name}\n```\n\n```text\n{_methods(name)}\n```\n"
        for name in METHODS
    }
    pages["index"] = (
        f"# Merge methods\n\n{_methods('--markdown')}\n\n```{{toctree}}\n:maxdepth: 1\n:hidden:\n\n{names}\n```\n"
    )
    (HERE / "methods").mkdir(exist_ok=True)
    for name, text in pages.items():
        path = HERE / "methods" / f"{name}.md"
        # An unchanged page keeps its time, so that Sphinx does not read it again.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Have the pages of the methods written before Sphinx looks for sources."""
    app.connect("builder-inited", _write_methods)
