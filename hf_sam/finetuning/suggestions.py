"""Suggestions for mistyped names of options and data sets."""

from collections.abc import Iterable

# Names in other programs that the spelling would not lead to the right option.
USUAL = {
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "wd": "weight_decay",
    "epoch": "num_train_epochs",
    "optimizer": "optim",
}
MOST_SUGGESTIONS = 2


def near(name: str, names: Iterable[str]) -> str:
    """Return the end of a message about an unknown option, with suggestions."""
    found = [f"--{option}" for option in alike(name.split("=")[0].replace("-", "_"), names)]
    return f": did you mean {' or '.join(found)}?" if found else ": see --help."


def alike(name: str, names: Iterable[str]) -> list[str]:
    """Return the few names that are similar to a mistyped one, if there are any.

    Args:
        name: What was typed.
        names: The valid names.
    """
    name, known = name.lower(), sorted(names)
    if name in USUAL and USUAL[name] in known:
        return [USUAL[name]]
    slips = {other: edits(name, other) for other in known if _may_be_mistyped(name, other)}
    longer = [other for other in known if len(name) >= 4 and other.startswith(name)]
    holding = [other for other in known if {*name.split("_")} <= {*other.split("_")}]
    for found in ([n for n in slips if slips[n] == min(slips.values())], longer, holding):
        if 0 < len(found) <= MOST_SUGGESTIONS:
            return found
    return []


def _may_be_mistyped(name: str, other: str) -> bool:
    """Allow one edit in every five letters, and in a short name not at its first letter."""
    most = max(len(name) // 5, len(name) >= 3)
    return edits(name, other) <= most and (len(name) >= 8 or name[:1] == other[:1])


def edits(first: str, second: str) -> int:
    """Return the edit distance with swaps of neighbouring letters (restricted Damerau)."""
    before, above = [0] * (len(second) + 1), list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        row = [i]
        for j, b in enumerate(second, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == second[j - 2] and first[i - 2] == b:
                row[j] = min(row[j], before[j - 2] + 1)
        before, above = above, row
    return above[-1]
