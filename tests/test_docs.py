"""Everything in README.md, CONTRIBUTING.md and docs/ that looks executable is executed."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import markdown
import pytest
import torch

from fadeup.upsamplers import ALIASES, UPSAMPLERS

ROOT = Path(__file__).parent.parent
FILES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SLOW = ("docs/export.md",)
SHELLS = ("console", "bash")
SILENT = ("text", "math", "bibtex", "mermaid")  # shown, not run


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
        known = block.language in ("python", *SHELLS, *SILENT)
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


def build(*options) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        ROOT / "scripts/docs.py",
        "build",
        "--strict",
        *options,
    ]  # not --quiet, with which warnings pass
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


class Page(HTMLParser):
    """What a page requests without a click, and its paragraphs less their code."""

    def __init__(self, path: Path):
        super().__init__()
        self.requests: list[str] = []
        self.prose = ""
        self.open = {"p": 0, "code": 0, "script": 0}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        if tag in self.open:
            self.open[tag] += 1
        if tag != "a":
            self.requests += [value or "" for key, value in attrs if key in ("src", "srcset", "href", "poster", "data")]

    def handle_endtag(self, tag):
        if tag in self.open:
            self.open[tag] -= 1
        self.prose += "\n" if tag == "p" else ""

    def handle_data(self, data):
        if self.open["p"] and not self.open["code"] and not self.open["script"]:
            self.prose += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documentation") / "site"
    done = build("--site-dir", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_documentation_builds_strictly_and_requests_nothing_from_outside(site):
    for path in site.rglob("*.html"):
        outside = [url for url in Page(path).requests if re.match(r"\s*(\w+:)?//", url)]
        assert not outside, f"{path.relative_to(site)} requests {outside}"
    for path in site.rglob("*.css"):
        outside = re.findall(r"@import.*|url\(['\"]?(?:\w+:)?//.*?\)", path.read_text(encoding="utf-8"))
        assert not outside, f"{path.relative_to(site)} requests {outside}"
    assert (site / "assets/mathjax.js").stat().st_size > 1_000_000  # formulas.js loads it


def test_no_list_table_block_or_formula_is_left_as_text(site):
    """Python-Markdown wants an empty line before lists and four columns for what is inside of them."""
    for path in site.rglob("*.html"):
        left = re.findall(r"^(?:[-*+] |\d+\. |\||`{3}|:::|#+ ).*|.*\$.*", Page(path).prose, re.MULTILINE)
        assert not left, f"{path.relative_to(site)} shows its source: {left}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[Here](#a-heading), [there](other.md#more), $x^2$.", None),
        ("[There](missing.md).", "'missing.md', but the target is not found"),
        ("[There](other.md#missing).", "does not contain an anchor '#missing'"),
        ("[Here](#missing).", "there is no such anchor on this page"),
        ("[There](../README.md).", "not found"),
        ("![Picture](missing.png)", "not found"),
        ("::: fadeup.upsamplers.MISSING", "got fadeup.upsamplers.MISSING"),
        ("::: fadeup.upsamplers.CARAFE missing", "CARAFE, got missing"),
    ],
)
def test_dead_links_and_references_fail_the_build(tmp_path, text, message):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Page\n\n## A heading\n\n{text}\n", encoding="utf-8")
    (tmp_path / "docs/other.md").write_text("# Other\n\n## More\n", encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nwatch: []\nnav: [index.md, other.md]\n")
    done = build("--config-file", tmp_path / "mkdocs.yml")
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == (message is None), said
    assert message is None or message in said, said


EXAMPLE = """
def double(numbers, *, times=2, **options):
    '''Multiply `numbers` by K*K or 2*K; C_en stays.

        out[i] = times * numbers[i]
          where  i < 3

    In *words*.

    Args:
        numbers: C. Any
            `list` of them.
        times, others: A factor: two.
        **options: Ignored.

    Returns:
        `list`: a new one.

        >>> double([1])
        [2]

    Raises:
        ValueError: Never.
    '''


class Counter:
    '''Counts.

    Args:
        start: Where.
    '''

    step: int = 1
    '''By how much.'''

    def __init__(self, start: int = 0, separator: str = "a, b-c, d", ending: str = "at the end, but-for this, nothing"):
        pass

    @property
    def value(self):
        '''Where it is.'''

    def add(self, number: int) -> None:
        '''Add `number`.'''

    def bare(self):
        pass


def undocumented():
    pass
"""


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Text of a page to the HTML that the extension makes of it, and the same without tags."""
    (tmp_path / "documented_example.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda text: markdown.markdown(text, extensions=["toc", "docs_reference"])
    sys.modules.pop("documented_example", None)


def plain(html_text: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", html_text))


def test_reference_of_a_function(reference):
    made = reference("# Page\n\n::: documented_example.double\n\nAfter.")
    assert '<h3 id="documented_example.double"><code>double</code></h3>' in made
    assert "documented_example.double(numbers, *, times=2, **options)" in plain(made)
    assert "<p>Multiply <code>numbers</code> by K*K or 2*K; C_en stays.</p>" in made
    assert "out[i] = times * numbers[i]\n  where  i < 3\n" in plain(made)
    assert "<p>In *words*.</p>" in made
    assert re.search(r"<dt><code>numbers</code></dt>\s*<dd>C. Any <code>list</code> of them.</dd>", made)
    assert re.search(r"<dt><code>times, others</code></dt>\s*<dd>A factor: two.</dd>", made)
    assert re.search(r"<dt><code>\*\*options</code></dt>\s*<dd>Ignored.</dd>", made)
    assert "<p><code>list</code>: a new one.</p>" in made
    assert ">>> double([1])\n[2]\n" in plain(made)
    assert re.search(r"<dt><code>ValueError</code></dt>\s*<dd>Never.</dd>", made)
    assert made.endswith("<p>After.</p>")


def test_reference_of_a_class_with_members(reference):
    made = reference("::: documented_example.Counter step value add")
    text = plain(made)
    assert "class documented_example.Counter(\n    start=0, separator='a, b-c, d',\n" in text
    assert "    ending='at the end, but-for this, nothing',\n)" in text
    assert "step = 1\n" in text
    assert "By how much." in text
    assert "value\n" in text
    assert "Where it is." in text
    assert 'id="documented_example.Counter.add"' in made
    assert "add(number)\n" in text
    assert "<p>Add <code>number</code>.</p>" in made
    assert "bare" not in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("::: documented_example.missing", "can be imported, got documented_example.missing"),
        ("::: missing_module.name", "can be imported, got missing_module.name"),
        ("::: documented_example.Counter missing", "members of Counter, got missing"),
        ("::: documented_example.undocumented", "with a docstring, got documented_example.undocumented"),
        ("::: documented_example.Counter bare", "with a docstring, got documented_example.Counter.bare"),
        (":::documented_example.Counter", "must read `::: object member member`"),
    ],
)
def test_references_to_nothing_are_errors(reference, line, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reference(line)


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
