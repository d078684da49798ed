"""Everything in README.md, CONTRIBUTING.md and docs/ that looks executable is executed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fadeup.upsamplers import ALIASES, UPSAMPLERS

ROOT = Path(__file__).parent.parent
FILES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FILES = [path for path in FILES if "_build" not in path.parts]
SLOW = ("docs/export.md",)
SHELLS = ("console", "bash")
SILENT = ("text", "math", "bibtex", "mermaid")  # shown, not run
DIRECTIVES = ("eval-rst", "toctree", "math", "note", "tip", "warning", "image", "figure", "admonition")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of content."""

    language: str
    line: int
    code: str


def blocks(path: Path) -> list[Block]:
    found, fence, language, start, content = [], "", "", 0, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        mark = re.match(r"\s*(`{3,}|~{3,})\s*(.*?)\s*$", line)
        if not fence and mark:
            fence, language, start, content = mark[1], mark[2], number + 1, []
        elif fence and mark and mark[1].startswith(fence) and not mark[2]:
            found.append(Block(language, start, textwrap.dedent("\n".join(content))))
            fence = ""
        elif fence:
            content.append(line)
    assert not fence, f"{path}:{start - 1}: the block is not closed"
    return found


def commands(block: Block) -> list[tuple[int, str]]:
    """Line numbers and commands; in a block with a `$` prompt all other lines are output."""
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(block.code.splitlines(), start=block.line):
        if lines and lines[-1][1].endswith("\\"):
            lines[-1] = lines[-1][0], lines[-1][1].removesuffix("\\") + line.strip()
        else:
            lines.append((number, line.strip()))
    prompted = [(number, line.removeprefix("$ ")) for number, line in lines if line.startswith("$ ")]
    return prompted or [(number, line) for number, line in lines if line and not line.startswith("#")]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parametrize(languages: tuple[str, ...]):
    chosen = [path for path in FILES if path.exists() and any(b.language in languages for b in blocks(path))]
    marks = {file: [pytest.mark.slow] for file in SLOW}
    return pytest.mark.parametrize(
        "path", [pytest.param(path, id=name(path), marks=marks.get(name(path), [])) for path in chosen]
    )


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")  # a checkout's pictures
    torch.manual_seed(0)
    return tmp_path


@parametrize(("python",))
def test_python_blocks_run(path, workplace):
    namespace = {"__name__": "__main__"}
    for block in blocks(path):
        if block.language == "python":
            # Blank lines in front, so that tracebacks give the line of the file.
            code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
            try:
                exec(code, namespace)
            except Exception as error:
                pytest.fail(
                    f"{name(path)}, block at line {block.line}: {type(error).__name__}: {error}\n{where(error)}"
                )


def where(error: Exception) -> str:
    """The line of the document that raised."""
    traceback, found = error.__traceback__, ""
    while traceback:
        file, line = Path(traceback.tb_frame.f_code.co_filename), traceback.tb_lineno
        if file.suffix == ".md":
            found = f"line {line}: {file.read_text(encoding='utf-8').splitlines()[line - 1].strip()}"
        traceback = traceback.tb_next
    return found


@parametrize(SHELLS)
def test_commands_run(path, workplace):
    for block in blocks(path):
        if block.language in SHELLS:
            for line, command in commands(block):
                check_command(shlex.split(command, comments=True), f"{name(path)}, line {line}: {command}")


def check_command(words: list[str], place: str) -> None:
    if words[:1] == ["fadeup"]:
        from fadeup.cli import main

        try:
            code = main(words[1:])
        except SystemExit as error:  # argparse, after --help or a wrong argument
            code = error.code
        assert not code, f"{place}: exit status {code}"
    elif words[:1] == ["make"] and len(words) == 2:
        done = subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{place}: {done.stderr}"
    elif words[:2] == ["pip", "install"]:
        check_pip(words[2:], place)
    else:
        pytest.fail(f"{place}: is neither fadeup, make TARGET nor pip install; mark the block ```text if it is not run")


def check_pip(arguments: list[str], place: str) -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for argument in arguments:
        match = re.fullmatch(r"(fadeup|\.)(?:\[([\w, -]+)\])?", argument)
        assert match or argument in ("-e", "--editable"), f"{place}: {argument} is not fadeup"
        asked = {extra.strip() for extra in match[2].split(",")} if match and match[2] else set()
        assert asked <= extras, f"{place}: pyproject.toml has no extra {', '.join(sorted(asked - extras))}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_block_says_what_it_is(path):
    for block in blocks(path):
        directive = re.match(r"\{([\w-]+)\}", block.language)
        known = directive[1] in DIRECTIVES if directive else block.language in ("python", *SHELLS, *SILENT)
        assert known, f"{name(path)}, line {block.line - 1}: {block.language or 'no language'} would not be run"


def first_column(path: Path, member: str) -> list[str]:
    """The code words in the first column of every table in whose first column `member` stands."""
    column, found = [], []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            column += re.findall(r"`([^`]+)`", line.split("|")[1])
        else:
            found += [column] if member in column else []
            column = []
    assert found, f"{name(path)} has no table with `{member}` in its first column"
    assert all(sorted(other) == sorted(found[0]) for other in found), f"tables of {name(path)} differ: {found}"
    return found[0]


@pytest.mark.parametrize("file", ["README.md", "docs/upsamplers/index.md"])
def test_table_names_every_upsampler_once(file):
    assert sorted(first_column(ROOT / file, "fade")) == sorted(UPSAMPLERS)


def test_table_names_every_alias_once():
    assert sorted(first_column(ROOT / "docs/upsamplers/index.md", "b1")) == sorted(ALIASES)


def test_documentation_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "doctrees"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "html"], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\nx\n```", [Block("python", 2, "x")]),
        ("- a\n  ```bash\n  make test\n  ```", [Block("bash", 3, "make test")]),
        ("````text\n```python\nx\n```\n````", [Block("text", 2, "```python\nx\n```")]),
        ("~~~python\nx\n~~~\n\n```\ny\n```", [Block("python", 2, "x"), Block("", 6, "y")]),
    ],
)
def test_blocks_are_found(tmp_path, text, expected):
    (tmp_path / "page.md").write_text(text)
    assert blocks(tmp_path / "page.md") == expected


def test_commands_are_found():
    assert commands(Block("console", 5, "$ fadeup cost\noutput\n$ make test")) == [(5, "fadeup cost"), (7, "make test")]
    assert commands(Block("bash", 1, "# why\nfadeup cost \\\n  fade\n")) == [(2, "fadeup cost fade")]


@pytest.mark.parametrize(
    "command", ["rm -rf x", "make", "pip install other", 'pip install "fadeup[nothing]"', "git clone x"]
)
def test_unknown_commands_fail(command):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_command(shlex.split(command), "here")
