"""Plot styles that distinguish up to eight models by colour, line, marker and hatch."""

from typing import Any

# Okabe-Ito, but brown in place of its yellow, which is hard to see on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8b4513")
GREY = "#8c8c8c"  # of further models, which are named where they are drawn
MARKERS = "osD^vPX*"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--", "oo")
LINES = ("-", "--", "-.", ":", "-", "--", "-.", ":")


def label(name: str) -> str:
    """Escape dollar signs, which would begin mathematics, in a name."""
    return name.replace("$", r"\$")


def colour(i: int) -> str:
    """Return the colour of model i."""
    return COLOURS[i] if i < len(COLOURS) else GREY


def line_style(i: int) -> dict[str, Any]:
    """Return the line style of model i."""
    if i >= len(COLOURS):
        return {"color": GREY, "linestyle": "-", "linewidth": 0.8}
    return {"color": COLOURS[i], "linestyle": LINES[i], "linewidth": 1.4}


def mark_style(i: int) -> dict[str, Any]:
    """Return the marker style of model i."""
    return {"color": colour(i), "marker": MARKERS[i % len(MARKERS)], "markersize": 4}


def bar_style(i: int, name: str) -> dict[str, Any]:
    """Return the bar style of model i."""
    if i >= len(COLOURS):
        return {"color": GREY}
    return {"color": COLOURS[i], "hatch": HATCHES[i], "label": label(name)}
