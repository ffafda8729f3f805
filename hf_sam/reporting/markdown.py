"""Texts of others in Markdown: shown as they are, never taken for markup.

A folder, a class or a setting may be called `<b>`, `|` or `](`. What a template puts in is escaped
unless it is `Markdown` already, so no text reaches a card in another way.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
CONTROL = r"[\x00-\x1f\x7f\x85\u2028\u2029]+"  # line breaks, for one


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def render(name: str, **values: Any) -> Markdown:
    """Fill in a template of the package, escaping every value that is not Markdown."""
    environment = Environment(finalize=escaped)
    template = environment.from_string((TEMPLATES / name).read_text(encoding="utf-8"))
    return Markdown(template.render(**values))


def escaped(value: Any) -> str:
    """Return a value as text on one line without meaning in Markdown or HTML."""
    if isinstance(value, Markdown):
        return value
    text = re.sub(CONTROL, " ", str(value)).replace("\\", "\\\\")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([`|*]|(?<=\])\()", r"\\\1", text)


def unmarked(value: Any) -> str:
    """Return a value as text for where nothing can be escaped: code, and a card's metadata."""
    return re.sub(rf"[`<>]|{CONTROL}", "_", str(value))


def code(value: Any) -> Markdown:
    """Return a span of code, for a table too."""
    return Markdown(f"`{unmarked(value).replace('|', '_')}`")


def code_block(value: Any) -> Markdown:
    """Return a block of code of one line."""
    return Markdown(f"```\n{unmarked(value)}\n```")


def table(rows: Sequence[Sequence[Any]]) -> Markdown:
    """Return a table, its head first."""
    head, *body = ([escaped(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))
