"""The parts of the documents that are written by a program, between two comments of Markdown.

`python tests/support/generated.py` (`make cards`) writes all of them anew, but for the matrix of
docs/compatibility.md, which `make matrix` writes.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # run as a script too
import clean_pass  # noqa: E402
import flatness  # noqa: E402
import step_cost  # noqa: E402
from generated_results import (  # noqa: E402
    CLEAN,
    EVIDENCE,
    FRONTIER,
    flatness_table,
    gains_table,
    headline_table,
    overview_text,
    results_table,
    summary_table,
)

from hf_sam import SAMArguments  # noqa: E402
from hf_sam.comparing.command_line import command_line_parser  # noqa: E402
from hf_sam.diagnostics.__main__ import command_line as report_parser  # noqa: E402
from hf_sam.finetuning.fields import BatchOptions, DataOptions, ModelOptions  # noqa: E402
from hf_sam.finetuning.options import DEFAULTS  # noqa: E402

OF_THE_MACHINE = ("dataloader_num_workers", "dataloader_pin_memory", "device")
NAMES = {  # of step_cost.json, in a sentence
    "mobilenetv2_035, 144 px": "MobileNetV2 0.35 at 144 px",
    "vit_tiny_patch16_224, 224 px": "ViT-Ti/16 at 224 px",
    "tiny tensors": "500 tiny tensors",
}


def in_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("%%", "%").replace("<", "&lt;")


def shown(default: Any) -> str:
    if default is None or default == []:
        return "unset"
    return str(default).lower() if isinstance(default, bool) else str(default)


def settings_table() -> str:
    rows = (
        f"| `{f.name}` | {shown(f.default)} | {in_cell(f.metadata['help'])} |"
        for f in dataclasses.fields(SAMArguments)
    )
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def finetune_table() -> str:
    """The options beside those of the Trainer and of SAM, and the defaults that are not its own."""
    lines = []
    kinds = {"Images": DataOptions, "Network": ModelOptions, "Batches": BatchOptions}
    for title, kind in kinds.items():
        lines += [f"**{title}**", "", "| option | default | meaning |", "|---|---|---|"]
        lines += [
            f"| `--{f.name}` | {shown(f.default)} | {in_cell(f.metadata['help'])} |"
            for f in dataclasses.fields(kind)
        ]
        lines.append("")
    lines += ["**Defaults that differ from the Trainer's**", ""]
    own = (f"`--{n} {shown(v)}`" for n, v in DEFAULTS.items() if n not in OF_THE_MACHINE)
    return "\n".join([*lines, ", ".join(own) + "."])


def parser_table(make: Callable[[], argparse.ArgumentParser]) -> str:
    """The options of a command, as its `--help` has them."""
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *_rows(make()._actions)])


def _rows(actions: Iterable[argparse.Action]) -> Iterable[str]:
    for action in actions:
        if isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest])
        default = "unset" if action.required else shown(action.default)
        if not action.option_strings:
            default = "required"
        if action.dest in OF_THE_MACHINE:
            default = "cuda where there is one, else cpu"
        yield f"| {names} | {default} | {in_cell(str(action.help))} |"


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


def clean_pass_table() -> str:
    facts = json.loads((ROOT / "benchmarks" / "clean_pass.json").read_text())
    rows = map(clean_pass.row, facts["results"])
    threads = "1 thread" if facts["threads"] == 1 else f"{facts['threads']} threads"
    machine = f"{threads}, torch {facts['torch']}, {facts['date']}."
    return "\n".join([clean_pass.head(), *rows, "", machine])


def cost_sentence() -> str:
    """What a step takes beside the plain Trainer's, in a sentence for the README."""
    facts = json.loads((ROOT / "benchmarks" / "step_cost.json").read_text())
    said = [
        f"{result['ratios']['SAMTrainer over Trainer'][1]:.2f} times for "
        f"{NAMES.get(result['model'], result['model'])}"
        for result in facts["results"]
    ]
    said[0] = said[0].replace("times", "times as long as the plain Trainer's", 1)
    return (
        f"On {facts['threads']} CPU cores a SAM step took {', '.join(said[:-1])} and {said[-1]} "
        "([docs/hardware.md](docs/hardware.md))."
    )


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
    return "\n".join([*lines, "", made_by("fidelity.py", facts)])


def made_by(script: str, facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"`python benchmarks/{script}`, {facts['date']}, {versions}."


def direction_table() -> str:
    facts = json.loads((ROOT / "benchmarks" / "direction.json").read_text())
    names = list(facts["rows"][0]["mean"])
    lines = [
        f"| network | moment | {' | '.join(names)} |",
        "|---" * (2 + len(names)) + "|",
    ]
    for row in facts["rows"]:
        cells = [f"{row['mean'][name]:.2f} ± {row['sd'][name]:.2f}" for name in names]
        lines.append(f"| {row['network']} | {row['moment']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_by("direction.py", facts)])


def autocast_table() -> str:
    facts = json.loads((ROOT / "benchmarks" / "autocast.json").read_text())
    cosines, rises = (list(facts["rows"][0][kind]) for kind in ("cosine", "sharpness"))
    shown = [f"cosine: {name}" for name in cosines] + [f"sharpness: {name}" for name in rises]
    lines = [f"| network | moment | {' | '.join(shown)} |", "|---" * (2 + len(shown)) + "|"]
    for row in facts["rows"]:
        cells = [f"{row['cosine'][name]:.2f}" for name in cosines]
        cells += [f"{row['sharpness'][name]:.3f}" for name in rises]
        lines.append(f"| {row['network']} | {row['moment']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", made_by("autocast.py", facts)])


README, DOCS = ROOT / "README.md", ROOT / "docs"
GENERATED: dict[Path, dict[str, Callable[[], str]]] = {
    README: {"results": headline_table, "cost": cost_sentence},
    DOCS / "settings.md": {
        "settings": settings_table,
        "finetune": finetune_table,
        "compare": partial(parser_table, command_line_parser),
        "report": partial(parser_table, report_parser),
    },
    DOCS / "methods.md": {"clean pass": clean_pass_table, "direction": direction_table}
    | {name: partial(gains_table, name) for name in (FRONTIER, CLEAN)},
    DOCS / "hardware.md": {
        "step cost": cost_table,
        "fidelity": fidelity_table,
        "autocast": autocast_table,
    },
    DOCS / "results.md": {"overview": overview_text, "summary": summary_table}
    | {name: partial(results_table, name) for name in EVIDENCE},
    DOCS / "sharpness.md": {name: partial(flatness_table, name) for name in flatness.names()},
}


def with_generated_parts(path: Path) -> str:
    """Return a document with each part between its two comments written anew."""
    text = path.read_text()
    for name, part in GENERATED[path].items():
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        content = part()
        text, found = re.subn(
            pattern, lambda m, c=content: f"{m[1]}\n{c}\n\n{m[2]}", text, flags=re.DOTALL
        )
        assert found == 1, f"{path.name} must have one pair of comments for {name}"
    return text


if __name__ == "__main__":
    for file in GENERATED:
        file.write_text(with_generated_parts(file))
