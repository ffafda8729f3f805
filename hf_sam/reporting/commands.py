"""Command lines for publication: without tokens, and with only the last part of local paths."""

import os
import re
from collections.abc import Sequence

from .model_card import without_tokens

# The beginning of a path that depends on the machine: /, ~, ~me/, ../, C:\ and \\server.
ROOT = r"(?:file:/*)?(?:(?:~[^\\/\"']*|\.\.|[A-Za-z]:)[\\/]|/|\\\\)"
WHOLE = re.compile(rf"((?:-*[\w-]+=)?)({ROOT}.*)", re.DOTALL)  # an argument, or an option's value
WITHIN = re.compile(  # in JSON, or in a list of paths
    rf"(?:(?<=[\"'=,;\[{{( ])|(?<=:)(?!//)){ROOT}(?:[^\"',;\]}})]*[\\/])?(?=[^\s\\/])"
)
CLIMBS = re.compile(r"((?:-*[\w-]+=)?)(.*[\\/]\.\.(?:[\\/].*|$))", re.DOTALL)


def shown_command(arguments: Sequence[str]) -> str:
    """Join command-line arguments to a command for a shell, without tokens and local paths."""
    return " ".join(without_tokens([without_path(argument) for argument in arguments]))


def without_path(argument: str) -> str:
    """Shorten the paths in an argument that begin at a root, home or parent folder to their names.

    A path relative to the working folder does not depend on the machine, and stays.
    """
    if found := WHOLE.fullmatch(argument) or CLIMBS.fullmatch(argument):
        return found[1] + last_part(found[2])
    return WITHIN.sub("", argument)


def last_part(path: str) -> str:
    """Return the last component of a path of any operating system; `.` and `..` are resolved."""
    if set(path) <= set("./\\"):  # ., .. or the root
        path = os.path.abspath(path)
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path
