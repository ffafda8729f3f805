"""What the README says is true: its code runs, its tables are those of the code.

`python tests/test_readme.py` writes the generated parts anew.
"""

import json
import re
import shutil
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent / "support")]  # run as a script too
from places import CARDS, ROOT  # noqa: E402

sys.path[:0] = [str(ROOT / "benchmarks")]
import flatness  # noqa: E402
import step_cost  # noqa: E402

from hf_sam import SAMArguments  # noqa: E402
from hf_sam.comparing import cards, overview  # noqa: E402
from hf_sam.comparing.comparison import BASELINES, Comparison, comparison_table  # noqa: E402
from hf_sam.reporting.interval import Interval  # noqa: E402

README = ROOT / "README.md"


def settings_table() -> str:
    rows = [
        f"| `{f.name}` | {f.default} | {f.metadata['help'].replace('|', chr(92) + '|')} |"
        for f in fields(SAMArguments)
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def cost_table() -> str:
    facts = json.loads((ROOT / "benchmarks" / "step_cost.json").read_text())
    table = [step_cost.HEAD, *map(step_cost.row, facts["results"])]
    ratios = facts["results"][-1]["ratios"]
    plain, loop, alone = (
        ratios[f"{name} over two passes"][1]
        for name in ("two passes of Trainer", "the same in a Trainer", "arithmetic alone")
    )
    remark = (
        f"On the tiny tensors two training steps of the plain Trainer take {plain:.2f} times two "
        f"bare passes, the loop as davda54/sam around them {loop:.2f} times, and SAM's arithmetic "
        f"alone in a bare loop {alone:.2f} times. "
        f"{facts['threads']} threads, torch {facts['torch']}, {facts['date']}."
    )
    return "\n".join([*table, "", remark])


def fidelity_table() -> str:
    facts = json.loads((ROOT / "benchmarks" / "fidelity.json").read_text())
    columns = list(dict.fromkeys((row["model"], row["dtype"]) for row in facts["rows"]))
    lines = [
        "| rho | " + " | ".join(f"{model}, {dtype}" for model, dtype in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for rho in dict.fromkeys(row["rho"] for row in facts["rows"]):
        cells = {
            (row["model"], row["dtype"]): f"{row['norm']:.2f}, {row['cosine']:.2f}"
            for row in facts["rows"]
            if row["rho"] == rho
        }
        lines.append(f"| {rho} | " + " | ".join(cells[column] for column in columns) + " |")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return "\n".join([*lines, "", f"`python benchmarks/fidelity.py`, {facts['date']}, {versions}."])


def comparison_of(name: str) -> Comparison:
    return Comparison.read(CARDS / f"{name}.json")


def results_table(name: str) -> str:
    """One comparison: its table, its plot and the command that made it."""
    comparison = comparison_of(name)
    record = comparison.record
    versions = ", ".join(f"{k} {record.versions[k]}" for k in ("torch", "transformers", "timm"))
    return "\n\n".join(
        [
            f"```bash\n{comparison.command}\n```",
            comparison_table(comparison),
            f"![error against gradient evaluations](../model_cards/{name}.png)",
            f"{record.hardware}; {versions}; {record.date}. Every run: "
            f"[JSON](../model_cards/{name}.json); its card: [{name}](../model_cards/{name}.md).",
        ]
    )


def flatness_table(name: str) -> str:
    """SAM's minima beside the base optimizer's: the table over seeds, the command and pictures."""
    reports = flatness.reports_of(name)
    first = reports[0]
    versions = ", ".join(f"{k} {first.versions[k]}" for k in ("torch", "transformers", "timm"))
    setup = first.portraits[0].sharpness.setup
    return "\n\n".join(
        [
            f"```bash\n{first.command}\n```",
            flatness.table_of(reports),
            f"{len(reports)} seeds, {setup.examples} images, {setup.parameters:,} parameters, "
            f"{setup.mode}, {setup.dtype}; {versions}; {first.date}. The command is the first "
            f"seed's; [every number](../model_cards/sharpness).",
            *(
                f"![{kind} of the first seed](../model_cards/sharpness/{name}-{kind}.png)"
                for kind in ("contours", "spectrum")
            ),
        ]
    )


def summary_table() -> str:
    """The three arms of every comparison that has them."""
    rows = [
        "| data, network, optimizer | base | base, twice the epochs | SAM | SAM minus base "
        "| SAM minus base, twice the epochs | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in EVIDENCE:
        comparison = comparison_of(name)
        if "base_2x" not in comparison.arms:
            continue
        cells = [
            f"{Interval.of([r.error for r in comparison.of(arm)])} "
            f"({comparison.of(arm)[0].gradient_evaluations:,})"
            for arm in ("base", "base_2x", "sam")
        ]
        gains = [str(Interval.of(comparison.differences("sam", arm))) for arm in BASELINES]
        seeds = str(len(comparison.of("sam")))
        rows.append(f"| {' | '.join([TITLES[name], *cells, *gains, seeds])} |")
    hardware = {comparison_of(name).record.hardware for name in EVIDENCE}
    return "\n".join([*rows, "", f"Hardware: {'; '.join(sorted(hardware))}."])


def overview_text() -> str:
    """What the picture of all comparisons shows, counted."""
    return overview.summary(overview.all_rows(sorted(CARDS.glob("*.json"))))


def gains_table(name: str) -> str:
    """What each method costs, and what it keeps of SAM's gain over base."""
    comparison = comparison_of(name)
    base = comparison.of("base")[0].gradient_evaluations
    rows = [
        "| arm | cost, runs of base | top-1 error, % | less than base by | share of SAM's gain "
        "| gain minus 90 % of SAM's | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in comparison.arms:
        pairs = list(zip(gains(comparison, arm), gains(comparison, "sam"), strict=False))  # by seed
        own, sams = zip(*pairs, strict=True)
        cost = comparison.of(arm)[0].gradient_evaluations / base
        error = Interval.of([result.error for result in comparison.of(arm)])
        gain, share, margin = "-", "-", "-"
        if arm != "base":
            gain, share = str(Interval.of(own)), f"{sum(own) / sum(sams):.0%}"
            margin = str(Interval.of([g - 0.9 * s for g, s in pairs]))
        cells = [f"`{arm}`", f"{cost:.4g}", str(error), gain, share, margin, str(len(own))]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def gains(comparison: Comparison, arm: str) -> list[float]:
    return [-difference for difference in comparison.differences(arm, "base")]


# The comparisons of docs/results.md, in its order, and what the README calls them.
FRONTIER, CLEAN = "cub200_first50-frontier", "cub200_first50-clean"
TITLES = {
    "cub200_first50-sgd": "50 birds of CUB-200, MobileNetV2 0.35, SGD",
    "cub200_first50-sgd3": "the same, settings chosen by three held-out tenths",
    "cub200_first50-adamw": "the same, AdamW",
    "cub200_first50-noise40": "the same, SGD, 40 % of the labels wrong",
    FRONTIER: "the same, SGD, 40 % wrong, settings chosen anew",
    CLEAN: "the same, SGD, right labels, four learning rates for base",
    "cub200_first50-noise80": "the same, SGD, 80 % of the labels wrong",
    "food101_first10-sgd": "10 dishes of Food-101, MobileNetV2 0.35, SGD",
    "cub200_first50-m": "m-sharpness",
    "cifar10-no_norm": "a network without BatchNorm",
}
EVIDENCE = [name for name in TITLES if (CARDS / f"{name}.json").exists()]
RESULTS = ROOT / "docs" / "results.md"
METHODS = ROOT / "docs" / "methods.md"
COMPATIBILITY = ROOT / "docs" / "compatibility.md"
SHARPNESS = ROOT / "docs" / "sharpness.md"
GENERATED = {
    README: {"settings": settings_table, "step cost": cost_table, "results": summary_table},
    METHODS: {name: partial(gains_table, name) for name in (FRONTIER, CLEAN)},
    COMPATIBILITY: {"fidelity": fidelity_table},
    RESULTS: {"overview": overview_text}
    | {name: partial(results_table, name) for name in EVIDENCE},
    SHARPNESS: {name: partial(flatness_table, name) for name in flatness.names()},
}


def with_generated_parts(path: Path) -> str:
    text = path.read_text()
    for name, table in GENERATED[path].items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        content = table()
        text, found = re.subn(
            pattern, lambda m, c=content: f"{m[1]}\n{c}\n\n{m[2]}", text, flags=re.DOTALL
        )
        assert found == 1, name
    return text


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.name)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    assert with_generated_parts(path) == path.read_text(), "run `python tests/test_readme.py`"


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


def code_blocks() -> list[str]:
    texts = "".join(path.read_text() for path in (README, COMPATIBILITY, SHARPNESS))
    return re.findall(r"```python\n(.*?)```", texts, flags=re.DOTALL)


@pytest.mark.parametrize("code", code_blocks())
def test_code_blocks_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_named_options_exist() -> None:
    from hf_sam.comparing.plan import command_line_parser
    from hf_sam.diagnostics.__main__ import command_line as diagnostics_command_line
    from hf_sam.finetuning.options import parse_options

    readme = README.read_text()
    known = {option for option in re.findall(r"--[a-z_]+", readme)} - {"--config"}
    for parser in (command_line_parser(), diagnostics_command_line()):
        known -= set(re.findall(r"--[a-z_]+", parser.format_help()))
    for option in known - {"--help"}:
        with pytest.raises((SystemExit, ValueError)) as refused:
            parse_options([option, "--no_such_option"])
        assert f"unknown option {option}" not in str(refused.value), option


def test_two_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z]+)", README.read_text()):
        assert f"\n{target}:" in makefile, target


def test_says_which_sam_this_is_once() -> None:
    assert README.read_text().count("Segment Anything") == 1


if __name__ == "__main__":
    for file in GENERATED:
        file.write_text(with_generated_parts(file))
    sys.exit()
