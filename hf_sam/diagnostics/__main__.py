"""The command `hf-sam report`: measures the sharpness of one or two classifiers, writes a report.

hf-sam report runs/sam --compare runs/base --data digits --out runs/sharpness
"""

import json
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reporting.commands import last_part, shown_command
from ..reporting.model_card import versions
from ..reporting.sharpness_card import add_sharpness_to_card
from ..vision import MAX_IMAGE_PIXELS, Splits, Task
from .card import card_section
from .checks import WRITTEN, fitting_m, require_usable
from .images import (
    batches_of,
    fingerprint,
    fingerprint_of,
    known_task,
    load_images,
    sample,
    top1_error,
)
from .landscape import Landscape, line_between
from .progress import Progress
from .report import Plan, Portrait, Report, kept_portrait, portray
from .trained import Trained, load_trained, training_seed

ERROR, BETWEEN = "top-1 error", "on the line between the two"  # names in the progress messages
LINE_BETWEEN = 25  # points
PROGRAM = "hf-sam report"


def main(argv: Sequence[str] | None = None, *, program: str = PROGRAM) -> Report:
    """Run the command; invalid input ends in one message and exit status 1.

    Args:
        argv: The command-line arguments; None for those of the process.
        program: The command as the user typed it, for messages and the report.
    """
    argv = sys.argv[1:] if argv is None else argv
    options = command_line(program).parse_args([_underscored(argument) for argument in argv])
    if find_spec("matplotlib") is None:
        sys.exit(f"{program}: the pictures need matplotlib: `pip install 'hf-sam[plots]'`.")
    try:
        return measure(options, shown_command([*program.split(), *argv]))
    except ValueError as error:
        sys.exit(f"{program}: {error}")
    except OSError as error:
        sys.exit(
            f"{program}: {error}: check that path (if the disk is full, make room or pass another "
            "`--out`); the same command goes on after the last whole model."
        )
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted; the same command goes on after the last whole model.")


def _underscored(argument: str) -> str:
    """Return an option with underscores in its name, which may be typed with dashes."""
    name, equals, value = argument.partition("=")
    is_option = name.startswith("--")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if is_option else argument


def measure(options: Namespace, command: str) -> Report:
    """Load, measure, and write `report.json` and `report.html`.

    Raises:
        ValueError: For invalid input.
    """
    folders = [options.model, *([options.compare] if options.compare else [])]
    names = options.names or [last_part(folder) for folder in folders]
    out, cards = Path(options.out), [Path(folder) / "README.md" for folder in folders]
    require_usable(names, folders, cards if options.card else [], out, options.device)
    _plan(options, options.m).rehearse()
    split = options.train_split or (known_task(options.data) or Task(None)).train_split
    splits = load_images(
        options.data,
        split=split,
        eval_split=options.eval_split,
        eval_share=options.eval_share,
        image_column=options.image_column,
        label_column=options.label_column,
        skip_bad_images=options.skip_bad_images,
        max_pixels=options.max_image_pixels,
    )
    models, most = [load_trained(f, splits.label_names) for f in folders], options.max_train_samples
    for trained in models:
        trained.require_images(options.eval_share, most)
    seed = options.seed if most is None else training_seed(models, options.seed)
    trained_on = sample(splits.train, most, seed, option="max_train_samples")
    examples = sample(trained_on, options.examples, options.seed)
    plan = _plan(options, fitting_m(options.m, len(examples)))
    size, most = options.batch_size, options.max_image_pixels
    batches = [list(batches_of(examples, trained, size, most, split=split)) for trained in models]
    for trained in models:
        trained.classifier.model.to(torch.device(options.device))
    progress = Progress(_costs(names, plan, len(examples), splits, options))
    between = None
    if options.compare:  # first, as it is quick and rejects models that cannot be compared
        progress.begin(BETWEEN)
        between = _line_between(models, batches[0], options)
    shared: dict[str, Any] = {
        "splits": splits, "options": options, "plan": plan, "progress": progress
    }  # fmt: skip
    portraits = [
        _portrait(name, trained, own, kept=out / "portraits" / f"{i}.json", **shared)
        for i, (name, trained, own) in enumerate(zip(names, models, batches, strict=True))
    ]
    report = Report(
        data=last_part(options.data),
        split=split,
        eval_split=splits.eval_split,
        eval_examples=min(options.max_eval_samples, len(splits.eval)),
        plan=plan,
        portraits=portraits,
        between=between,
        command=command,
        versions=versions(),
        date=date.today().isoformat(),
    )
    _write(report, out, cards if options.card else [])
    return report


def _line_between(
    models: Sequence[Trained], batches: Sequence[Mapping[str, Tensor]], options: Namespace
) -> Landscape:
    """Measure the loss on the line between two models, on images prepared for the first."""
    first, second = (trained.classifier for trained in models)
    if first.model.state_dict().keys() == second.model.state_dict().keys():  # else refused below
        for name in first.data_config.keys() | second.data_config.keys():
            one, other = (each.data_config.get(name) for each in (first, second))
            if json.dumps(one) != json.dumps(other):  # a file has lists for tuples
                raise ValueError(
                    f"`--compare` must be a model with the same preprocessing, got {name} {other} "
                    f"and not {one}: make a report on each."
                )
    return line_between(first.model, second.model, batches, seed=options.seed, points=LINE_BETWEEN)


def _write(report: Report, out: Path, cards: Sequence[Path]) -> None:
    """Write the report, and its section in the models' cards."""
    from .html import write_html  # needs matplotlib, an optional dependency

    numbers, page = (out / name for name in WRITTEN)
    report.write(numbers)
    write_html(page, report)
    for card, portrait in zip(cards, report.portraits, strict=False):
        add_sharpness_to_card(card, card_section(report, portrait))
    print(f"\nreport: {page}; numbers: {numbers}")


def _portrait(
    name: str,
    trained: Trained,
    batches: Sequence[Mapping[str, Tensor]],
    *,
    kept: Path,
    splits: Splits,
    options: Namespace,
    plan: Plan,
    progress: Progress,
) -> Portrait:
    """Load the measurements of an interrupted run, or measure the model and save them."""
    model = trained.classifier.model
    most, seed = options.max_eval_samples, options.seed
    evaluation = sample(splits.eval, most, seed, option="max_eval_samples")
    of: list[Any] = [fingerprint(model.state_dict()), [fingerprint(batch) for batch in batches]]
    unseen = sample(splits.eval, options.examples, seed)
    of += [fingerprint_of(evaluation), fingerprint_of(unseen), options.batch_size]
    of += [str(plan), options.device, versions()]
    if portrait := kept_portrait(kept, of):
        print(f"{name}: measured before, taken from {kept}", flush=True)
        progress.skip(f"{name}: ")
        return replace(portrait, name=name, run=trained.run)
    print(f"{name}: {trained.classifier.report}", flush=True)
    of_split = trained, options.batch_size, options.max_image_pixels
    loader = batches_of(evaluation, *of_split, split=splits.eval_split)
    progress.begin(f"{name}: {ERROR}")
    error = top1_error(model, loader)
    held_out = list(batches_of(unseen, *of_split, split=splits.eval_split))
    portrait = portray(
        model,
        batches,
        plan,
        held_out=held_out,
        name=name,
        error=error,
        run=trained.run,
        begin=lambda what: progress.begin(f"{name}: {what}"),
    )
    portrait.keep(kept, of)
    return portrait


def _costs(
    names: Sequence[str], plan: Plan, examples: int, splits: Splits, options: Namespace
) -> dict[str, float]:
    """Return the cost of each measurement, in forward-backward passes over the examples."""
    error = min(options.max_eval_samples, len(splits.eval)) / examples / 3
    of_one = {ERROR: error, **plan.costs()}
    costs = {BETWEEN: LINE_BETWEEN / 3} if len(names) > 1 else {}
    return costs | {f"{name}: {what}": cost for name in names for what, cost in of_one.items()}


def _plan(options: Namespace, m: Sequence[int] | None) -> Plan:
    """Return the plan that the options ask for, with the given or the default `m`."""
    chosen = {field.name: getattr(options, field.name) for field in fields(Plan)}
    return Plan(**{**chosen, "m": Plan().m if m is None else tuple(m)})


def command_line(program: str = PROGRAM) -> ArgumentParser:
    """Return the parser of the command-line options."""
    parser = ArgumentParser(
        prog=program,
        description="Measure how sharp a classifier's minimum is, and write report.json and "
        "report.html.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    add, plan = parser.add_argument, Plan()
    add("model", help="folder of a trained image classifier, or its name on the Hub")
    add("--compare", metavar="OTHER", help="a second model of the same architecture")
    add(
        "--data",
        "--data_dir",
        "--dataset",
        default="digits",
        help="a known data set, as digits or oxford_pets, a folder (parquet or "
        "train/<class>/<image>), or owner/name on the Hub",
    )
    add("--out", default="runs/sharpness", help="folder to write to")
    add("--names", nargs="+", help="names of the models in the report")
    add("--train_split", help="split whose loss is measured; unset: train, or a known data set's")
    add("--eval_split", help="split whose error is measured; unset: test or validation")
    add("--eval_share", type=float, help="as given to hf-sam finetune, in place of an eval_split")
    add("--image_column", help="column of the images")
    add("--label_column", help="column of the labels")
    add("--skip_bad_images", action="store_true", help="as given to hf-sam finetune")
    add(
        "--max_image_pixels", type=int, default=MAX_IMAGE_PIXELS, help="as given to hf-sam finetune"
    )
    add("--max_train_samples", type=int, help="as given to hf-sam finetune, for the same sample")
    add("--examples", type=int, default=128, help="images whose loss is measured, drawn at random")
    add("--max_eval_samples", type=int, default=2000, help="images for the error, at most")
    add(
        "--batch_size",
        type=int,
        default=32,
        help="images per batch; in the scan over rho each batch has its own perturbation: use "
        "the training's micro-batch size, or less to save memory",
    )
    add("--rho", type=float, default=plan.rho, help="L2 radius in parameter space")
    add("--steps", type=int, default=plan.steps, help="steps of projected ascent")
    add("--sigma", type=float, default=plan.sigma, help="standard deviation in each weight")
    add("--directions", type=int, default=plan.directions, help="random directions to average over")
    usual = ", ".join(map(str, plan.m))
    add("--m", type=int, nargs="*", help=f"m of m-sharpness; unset: those of {usual} that fit")
    add("--top_k", type=int, default=plan.top_k, help="number of eigenvalues of the Hessian")
    add("--trace_probes", type=int, default=plan.trace_probes, help="random vectors for the trace")
    probes = plan.density_probes
    add("--density_probes", type=int, default=probes, help="random vectors; 0: no spectrum")
    add("--density_steps", type=int, default=plan.density_steps, help="Lanczos steps of a probe")
    add("--points", type=int, default=plan.points, help="grid points a side; 0: no landscape")
    half = "half-width of the landscape, in norms of each filter"
    add("--span", type=float, default=plan.span, help=half)
    add("--seed", type=int, default=plan.seed, help="of the image sample and all random directions")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="device")
    add("--card", action="store_true", help="add a section to the README.md beside each model")
    return parser


if __name__ == "__main__":
    main(program="python -m hf_sam.diagnostics")
