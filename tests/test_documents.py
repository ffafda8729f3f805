"""What the documents say is true: their tables are those of the program, their code runs."""

import re
import shutil
from collections.abc import Iterable
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
import yaml
from generated import GENERATED, with_generated_parts
from generated_results import EVIDENCE, TITLES, comparison_of
from places import CARDS, ROOT

from hf_sam.comparing import cards
from hf_sam.comparing.comparison import Comparison
from hf_sam.reporting.interval import Interval

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PART = re.compile(r"<!-- ([^:\n]*): generated.*?<!-- end of \1 -->", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
MEAN = re.compile(r"(\d+\.?\d*) ± (\d+\.?\d*)")
every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    assert with_generated_parts(path) == path.read_text(), "run `make cards`"


@pytest.mark.parametrize("name", EVIDENCE)
def test_cards_come_from_the_json_byte_for_byte(name: str, tmp_path: Path) -> None:
    shutil.copy(CARDS / f"{name}.json", tmp_path)
    shutil.copytree(CARDS / "sharpness", tmp_path / "sharpness")
    cards.main([str(tmp_path / f"{name}.json")])
    assert (tmp_path / f"{name}.md").read_bytes() == (CARDS / f"{name}.md").read_bytes(), (
        "run `make cards`"
    )
    assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_every_comparison_is_shown() -> None:
    found = {path.stem for path in CARDS.glob("*.json")}
    assert found <= set(TITLES), "name it in TITLES, and in docs/results.md"


def code_blocks() -> Iterable[object]:
    for path in DOCUMENTS:
        if path.name == "sentence_transformers.md":
            continue  # with a model of the Hub: tests/trainer/test_sentence_transformers.py runs it
        blocks = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
        for i, code in enumerate(blocks):
            yield pytest.param(code, id=f"{path.name}-{i}")


@pytest.mark.parametrize("code", list(code_blocks()))
def test_code_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "document", "exec"), {"__name__": "document"})


@cache
def anchors(path: Path) -> set[str]:
    """What the headings of a page are called in links, on GitHub and on the site."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in titles]
    return {re.sub(r"\s", "-", title) for title in plain}


@every_document
def test_links_and_pictures_are_there(path: Path) -> None:
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name}: {link}"
        assert target.is_relative_to(ROOT), f"{path.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{path.name}: {link}"


@every_document
def test_headings_of_a_page_differ(path: Path) -> None:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    assert len(titles) == len({title.lower() for title in titles})


@every_document
def test_every_row_is_in_a_table(path: Path) -> None:
    """Rows of as many cells, below a head; a row apart would be shown as text."""
    text = re.sub(r"\\\|", "", FENCE.sub("", path.read_text()))
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        head, line, *rows = table.splitlines()
        assert re.fullmatch(r"\|(?: ?-+ ?\|)+", line), table
        assert {row.count("|") for row in rows} == {head.count("|")}, table


def test_every_page_is_in_the_sites_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    pages = re.findall(r": (\w+\.md)$", text, flags=re.MULTILINE)
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    repository = yaml.safe_load(text)["repo_url"]
    assert all(url.startswith(repository) for url in re.findall(r"https://github\.com/\S+", text))


@cache
def measured() -> frozenset[tuple[float, float]]:
    """Means with half-widths: of the generated tables, and of pairs of arms on the same data."""
    parts = [part[0] for path in GENERATED for part in PART.finditer(path.read_text())]
    known = {(float(m), float(h)) for part in parts for m, h in MEAN.findall(part)}
    comparisons = map(comparison_of, EVIDENCE)
    arms = [(c.record.dataset, error_by_seed(c, arm)) for c in comparisons for arm in c.arms]
    for (data, a), (others, b) in permutations(arms, 2):
        if data == others and len(seeds := a.keys() & b.keys()) > 1:
            interval = Interval.of([a[seed] - b[seed] for seed in seeds])
            known.add((abs(interval.mean), interval.half_width))
    return frozenset(known)


def error_by_seed(comparison: Comparison, arm: str) -> dict[int, float]:
    return {result.seed: result.error for result in comparison.of(arm)}


@every_document
def test_figures_of_the_text_were_measured(path: Path) -> None:
    """Where the text gives a mean with its interval, a table or a comparison has it."""
    quoted = MEAN.findall(PART.sub("", path.read_text()))
    for mean, half in quoted:
        texts = {(f"{m:.{decimals(mean)}f}", f"{h:.{decimals(half)}f}") for m, h in measured()}
        assert (mean, half) in texts, f"{path.name}: {mean} ± {half}"


def decimals(number: str) -> int:
    return len(number.partition(".")[2])
