"""What is asked of the README alone: it is short, it says which SAM this is, it shows the way."""

import re

from places import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_it_says_which_sam_this_is_once() -> None:
    assert README.count("Segment Anything") == 1


def test_it_leads_to_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md", "compatibility.md"}
    assert pages <= set(re.findall(r"\]\(docs/(\w+\.md)", README))


def test_every_room_is_in_the_tree() -> None:
    tree = re.search(r"## Where things are\n\n```\n(.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    package = ROOT / "hf_sam"
    rooms = {path.parent.relative_to(package).parts[0] for path in package.glob("*/__init__.py")}
    missing = {room for room in rooms if f"{room}/" not in tree[1]}
    assert not missing
    for name in re.findall(r"^(\w+)/", tree[1], flags=re.MULTILINE):
        assert (ROOT / name).is_dir(), name
