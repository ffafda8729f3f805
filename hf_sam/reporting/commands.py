"""A command line as anyone may see it: without tokens, and of this machine's paths only the end."""

import os
import re
from collections.abc import Sequence

from .model_card import without_tokens

# What a path begins with that says where it is on a machine: /, ~, ~me/, ../, C:\ and \\server.
ROOT = r"(?:file:/*)?(?:(?:~[^\\/\"']*|\.\.|[A-Za-z]:)[\\/]|/|\\\\)"
WHOLE = re.compile(rf"((?:-*[\w-]+=)?)({ROOT}.*)", re.DOTALL)  # a word, or an option's value
WITHIN = re.compile(  # a word of JSON, or a list of paths
    rf"(?:(?<=[\"'=,;\[{{( ])|(?<=:)(?!//)){ROOT}(?:[^\"',;\]}})]*[\\/])?(?=[^\s\\/])"
)
CLIMBS = re.compile(r"((?:-*[\w-]+=)?)(.*[\\/]\.\.(?:[\\/].*|$))", re.DOTALL)


def shown_command(words: Sequence[str]) -> str:
    """Return words as one line to type, with nothing in it that is secret or this machine's own."""
    return " ".join(without_tokens([without_path(word) for word in words]))


def without_path(word: str) -> str:
    """Return a word with the last part of each path that begins at a root, home or parent folder.

    A path from the working folder on says nothing of the machine, and stays.
    """
    if found := WHOLE.fullmatch(word) or CLIMBS.fullmatch(word):
        return found[1] + last_part(found[2])
    return WITHIN.sub("", word)


def last_part(path: str) -> str:
    """Return the name that a path ends with, of any system's, whatever folder `.` is here."""
    if set(path) <= set("./\\"):  # here, above or the root
        path = os.path.abspath(path)
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path
