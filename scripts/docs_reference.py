"""Markdown extension: a line `::: fadeup.upsamplers.CARAFE macs` becomes the reference of the class and that member.

An object gets a heading with its name as anchor, its signature, and its docstring in Google's style. Types stay out of
the signatures: the text gives shapes, which types do not. What does not exist is an error, and so is a
function or class without a docstring.
"""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
import textwrap
import xml.etree.ElementTree as etree
from dataclasses import dataclass
from itertools import pairwise

from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.util import AtomicString
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonConsoleLexer, PythonLexer, TextLexer

FIELDS = ("Args", "Attributes", "Raises")  # of entries `name: text`; other sections hold paragraphs
SECTIONS = (*FIELDS, "Returns", "Yields", "Note", "Example", "Examples")
WIDTH = 72  # of a signature's line, so that it need not be scrolled


@dataclass(frozen=True)
class Part:
    """A piece of a docstring: `kind` is text, code, or the name of a section, which then holds all in `lines`."""

    kind: str
    lines: list[str]


def parts(docstring: str) -> list[Part]:
    """Paragraphs, indented or doctest blocks, and sections, in their order."""
    lines, found = docstring.splitlines(), []
    while lines:
        line = lines[0]
        heading = re.fullmatch(r"(\w+):", line)
        if not line.strip():
            lines.pop(0)
        elif heading and heading[1] in SECTIONS:
            body = taken(lines[1:], lambda x: not x.strip() or x[0] == " ")
            found.append(Part(heading[1], textwrap.dedent("\n".join(body)).strip("\n").splitlines()))
            del lines[: 1 + len(body)]
        elif line[0] == " ":  # a formula keeps its lines and columns
            body = taken(lines, lambda x: not x.strip() or x[0] == " ")
            found.append(Part("code", textwrap.dedent("\n".join(body)).strip("\n").splitlines()))
            del lines[: len(body)]
        else:
            body = taken(lines, lambda x: bool(x.strip()))
            found.append(Part("code" if line.startswith(">>>") else "text", body))
            del lines[: len(body)]
    return found


def taken(lines: list[str], keep) -> list[str]:
    return lines[: next((i for i, line in enumerate(lines) if not keep(line)), len(lines))]


def entries(lines: list[str]) -> list[tuple[str, str]]:
    """`name: text` with the lines that go on; the name may be several, `a, b`, or a starred one."""
    found: list[list[str]] = []
    for line in lines:
        start = re.match(r"([\w.*][\w.*, ]*): ?(.*)", line)
        if start:
            found.append([start[1], start[2]])
        elif not found or (line.strip() and line[0] != " "):
            raise ValueError(f"entry must read `name: text`, got {line!r}")
        else:
            found[-1][1] += " " + line.strip()
    return [(name, text.strip()) for name, text in found]


def find(path: str):
    """The object that a dotted path names."""
    found = pydoc.locate(path)
    if found is None:
        raise ValueError(f"::: must name an object that can be imported, got {path}")
    return found


def member(owner: type, name: str):
    try:
        return inspect.getattr_static(owner, name)
    except AttributeError:
        raise ValueError(f"::: must name members of {owner.__qualname__}, got {name}") from None


def attribute_docstring(owner: type, name: str) -> str:
    """The string below the assignment, which Python itself forgets."""
    base = next(base for base in owner.__mro__ if name in vars(base))
    body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
    for statement, following in pairwise(body):
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        if any(getattr(target, "id", None) == name for target in targets):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            return inspect.cleandoc(following.value.value) if is_text else ""
    return ""


@dataclass(frozen=True)
class Default:
    """A default whose spaces are no place to break the line."""

    value: object

    def __repr__(self) -> str:
        return repr(self.value).replace(" ", "\0")


def shown(parameter: inspect.Parameter) -> inspect.Parameter:
    empty = inspect.Parameter.empty
    default = empty if parameter.default is empty else Default(parameter.default)
    return parameter.replace(annotation=empty, default=default)


def signature(name: str, value) -> str:
    """The call without types, on several lines where one would be long."""
    parameters = inspect.signature(value).parameters.values()
    arguments = str(inspect.Signature([shown(p) for p in parameters if p.name != "self"]))  # knows where `*` and `/` go
    if len(name + arguments) > WIDTH:
        indent = " " * 4
        wrapper = textwrap.TextWrapper(WIDTH, indent, indent, break_long_words=False, break_on_hyphens=False)
        arguments = f"(\n{wrapper.fill(arguments[1:-1])},\n)"
    return (name + arguments).replace("\0", " ")


class Page:
    """Adds references to an element of a page."""

    def __init__(self, md: Markdown):
        self.md = md

    def reference(self, parent: etree.Element, path: str, members: list[str]) -> None:
        value = find(path)
        docstring = inspect.getdoc(value)
        if not docstring:
            raise ValueError(f"::: must name an object with a docstring, got {path}")
        box = etree.SubElement(parent, "div", {"class": "reference"})
        name = path.rpartition(".")[2]
        heading = etree.SubElement(box, "h3", {"id": path})
        etree.SubElement(heading, "code").text = AtomicString(name)
        self.code(box, ("class " if inspect.isclass(value) else "") + signature(path, value), PythonLexer())
        self.docstring(box, docstring)
        for each in members:
            self.member(box, path, value, each)

    def member(self, parent: etree.Element, path: str, owner: type, name: str) -> None:
        value = member(owner, name)
        box = etree.SubElement(parent, "div", {"class": "reference-member", "id": f"{path}.{name}"})
        if callable(value):
            head, docstring = signature(name, value), inspect.getdoc(getattr(owner, name))
        elif isinstance(value, property):
            head, docstring = name, inspect.getdoc(value)
        else:
            head, docstring = f"{name} = {value!r}", attribute_docstring(owner, name)
        if callable(value) and not docstring:
            raise ValueError(f"::: must name methods with a docstring, got {path}.{name}")
        self.code(box, head, PythonLexer())
        self.docstring(box, docstring)

    def docstring(self, parent: etree.Element, docstring: str) -> None:
        for part in parts(docstring):
            if part.kind == "text":
                self.text(etree.SubElement(parent, "p"), " ".join(part.lines))
            elif part.kind == "code":
                console = part.lines[0].startswith(">>>")
                self.code(parent, "\n".join(part.lines), PythonConsoleLexer() if console else TextLexer())
            else:
                etree.SubElement(parent, "p", {"class": "reference-section"}).text = AtomicString(part.kind)
                body = etree.SubElement(parent, "div", {"class": "reference-body"})
                self.fields(body, part.lines) if part.kind in FIELDS else self.docstring(body, "\n".join(part.lines))

    def fields(self, parent: etree.Element, lines: list[str]) -> None:
        table = etree.SubElement(parent, "dl")
        for name, text in entries(lines):
            etree.SubElement(etree.SubElement(table, "dt"), "code").text = AtomicString(name)
            self.text(etree.SubElement(table, "dd"), text)

    def text(self, parent: etree.Element, text: str) -> None:
        """Code in single backticks; everything else is text, in which `K*K` and `C_en` are not emphasis."""
        first, *others = re.split(r"`([^`]+)`", text)
        parent.text = AtomicString(first)
        for code, tail in zip(others[::2], others[1::2], strict=True):
            element = etree.SubElement(parent, "code")
            element.text, element.tail = AtomicString(code), AtomicString(tail)

    def code(self, parent: etree.Element, text: str, lexer) -> None:
        html = highlight(text, lexer, HtmlFormatter(cssclass="highlight", wrapcode=True))
        etree.SubElement(parent, "p").text = self.md.htmlStash.store(html)


class References(BlockProcessor):
    """The lines `::: object members…` of a block."""

    LINE = re.compile(r":::[ ]+([\w.]+)((?:[ ]+\w+)*)[ ]*")

    def test(self, parent, block):
        return block.startswith(":::")

    def run(self, parent, blocks):
        for line in blocks.pop(0).splitlines():
            asked = self.LINE.fullmatch(line)
            if not asked:
                raise ValueError(f"a reference must read `::: object member member`, got {line!r}")
            Page(self.parser.md).reference(parent, asked[1], asked[2].split())


class Reference(Extension):
    def extendMarkdown(self, md: Markdown):
        md.parser.blockprocessors.register(References(md.parser), "reference", 75)  # after indented code (80)


def makeExtension(**options):
    return Reference(**options)
