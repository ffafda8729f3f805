"""Plot styles that distinguish models by colour, line, marker and hatch together."""

from typing import Any

# Okabe-Ito, but brown in place of its yellow, which is hard to see on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8b4513")
MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--", "oo")
LINES = ("-", "--", "-.", ":")


def label(name: str) -> str:
    """Escape dollar signs, which would begin mathematics, in a name."""
    return name.replace("$", r"\$")


def colour(i: int) -> str:
    """Return the colour of model i."""
    return COLOURS[i % len(COLOURS)]


def line_style(i: int) -> dict[str, Any]:
    """Return the line style of model i."""
    return {"color": colour(i), "linestyle": LINES[_turned(i) % len(LINES)], "linewidth": 1.4}


def mark_style(i: int) -> dict[str, Any]:
    """Return the marker style of model i."""
    return {"color": colour(i), "marker": MARKERS[_turned(i) % len(MARKERS)], "markersize": 4}


def bar_style(i: int, name: str) -> dict[str, Any]:
    """Return the bar style of model i."""
    hatch = HATCHES[_turned(i) % len(HATCHES)]
    return {"color": colour(i), "hatch": hatch, "label": label(name)}


def _turned(i: int) -> int:
    """Return an index that meets other styles when the colours begin again."""
    return i + i // len(COLOURS)
