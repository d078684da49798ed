"""Sphinx configuration. Builds without a network: `sphinx-build -W -b html docs docs/_build/html`."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import fadeup

project = "fadeup"
author = "The fadeup authors"
copyright = author
release = version = fadeup.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write names in single backticks
smartquotes_action = "D"  # dashes only: H' is not a quotation

html_theme = "furo"
html_title = f"fadeup {release}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay readable; the text gives shapes, which types do not
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def docstring_to_rest(app, what, name, obj, options, lines):
    """Docstrings indent their formulas after a blank line; reST would run such lines together as a quotation."""
    result = []
    quoted = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ") and not line.strip().startswith(">>>")
        after_text = i >= 2 and not lines[i - 1].strip() and lines[i - 2].strip() and lines[i - 2][0] != " "
        if indented and after_text and not quoted:
            result += ["::", ""]
            quoted = True
        quoted = quoted and (indented or not line.strip())
        # "decoder_channels: C." would start a list that is numbered by letters.
        result.append(re.sub(r"^(\s+\w+: )([A-Za-z]|\d+)\.(?=\s|$)", r"\1\2\\.", line))
    lines[:] = result


def setup(app):
    # Before napoleon (500), which then leaves the literal blocks alone.
    app.connect("autodoc-process-docstring", docstring_to_rest, priority=400)
