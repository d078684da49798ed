"""Calls mkdocs with the extension and the files that the documentation needs.

    python scripts/docs.py build --strict
    python scripts/docs.py serve

Python puts this folder on the path, where mkdocs then finds `docs_reference`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def copy_mathjax() -> None:
    """Two megabytes that draw the formulas, from a package that holds MathJax's files and no code."""
    found = importlib.util.find_spec("mathjax")
    if not found or not found.submodule_search_locations:
        raise SystemExit('formulas need the package django-static-mathjax: pip install -e ".[dev]"')
    source = Path(next(iter(found.submodule_search_locations))) / "static/mathjax/es5/tex-svg.js"
    shutil.copyfile(source, ROOT / "docs/assets/mathjax.js")


if __name__ == "__main__":
    from mkdocs.__main__ import cli

    copy_mathjax()
    os.chdir(ROOT)
    cli()
