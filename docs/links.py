"""A hook of mkdocs: links that leave docs/ work on the site as they do on GitHub.

A picture is copied into the site; any other file or folder is linked to in the repository.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\]\(\.\./([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures that pages show from elsewhere in the repository."""
    pages = [file for file in files if file.is_documentation_page()]
    names = {found[1] for page in pages for found in OUTSIDE.finditer(page.content_string)}
    for name in sorted(names):
        if name.endswith(".png"):
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, config: Any, **_: Any) -> str:
    """Point links that leave docs/ to the picture's copy or to the repository."""

    def target(found: re.Match[str]) -> str:
        name, anchor = found[1], found[2] or ""
        if name.endswith(".png"):
            return f"]({name})"
        if not (ROOT / name).exists():
            raise FileNotFoundError(f"a page links to ../{name}, which there is not")
        kind = "tree" if (ROOT / name).is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{name}{anchor})"

    return OUTSIDE.sub(target, markdown)
