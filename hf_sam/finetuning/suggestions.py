"""Suggestions for mistyped names of options and data sets."""

from collections.abc import Iterable
from difflib import get_close_matches

# Slips, and names in other programs, that the spelling would not lead to the right option.
USUAL = {
    "roh": "rho",
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
    if USUAL.get(name) in known:
        return [USUAL[name]]
    exact = [name] if name in known else []
    near_ones = get_close_matches(name, known, n=1, cutoff=0.8)
    mistyped = [other for other in near_ones if other[0] == name[0]]
    longer = [other for other in known if len(name) >= 4 and other.startswith(name)]
    holding = [other for other in known if {*name.split("_")} <= {*other.split("_")}]
    choices = (exact, longer, mistyped, holding)
    return next((found for found in choices if 0 < len(found) <= MOST_SUGGESTIONS), [])
