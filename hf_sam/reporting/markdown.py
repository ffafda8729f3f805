"""Markdown templates that escape what users typed.

A folder, a class or a setting may be called `<b>`, `|` or `](`. Every value in a template is
escaped unless it is `Markdown` already.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
CONTROL = r"[\x00-\x1f\x7f\x85\u2028\u2029]+"  # control characters, line breaks included


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def render(name: str, **values: Any) -> Markdown:
    """Render a template of the package, escaping every value that is not Markdown."""
    environment = Environment(finalize=escaped)
    template = environment.from_string((TEMPLATES / name).read_text(encoding="utf-8"))
    return Markdown(template.render(**values))


def escaped(value: Any) -> str:
    """Return a value as one line of text, escaped for Markdown and HTML."""
    if isinstance(value, Markdown):
        return value
    text = re.sub(CONTROL, " ", str(value)).replace("\\", "\\\\")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([`|*]|(?<=\])\()", r"\\\1", text)


def unmarked(value: Any) -> str:
    """Return a value as text for code and metadata, where markup is replaced instead of escaped."""
    return re.sub(rf"[`<>]|{CONTROL}", "_", str(value))


def code(value: Any) -> Markdown:
    """Return an inline code span, which is safe in a table."""
    return Markdown(f"`{unmarked(value).replace('|', '_')}`")


def code_block(value: Any) -> Markdown:
    """Return a code block of one line."""
    return Markdown(f"```\n{unmarked(value)}\n```")


def table(rows: Sequence[Sequence[Any]]) -> Markdown:
    """Return a table; the first row is its header."""
    head, *body = ([escaped(cell) for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *body]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))
