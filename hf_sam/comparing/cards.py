"""Model cards and plots, made from the JSON of comparisons.

python -m hf_sam.comparing.cards model_cards/*.json
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..diagnostics.card import card_section
from ..diagnostics.report import Report
from ..reporting.markdown import code, code_block
from ..reporting.model_card import write_run_card
from ..reporting.sharpness_card import add_sharpness_to_card, sharpness_in_card
from .comparison import Comparison, comparison_table, trials_table
from .paired import paired_table
from .plots import plot_comparison


def write_comparison_card(path: Path, comparison: Comparison, report: Report | None = None) -> None:
    """Write the card of the model that a comparison publishes.

    Args:
        path: The file. What it says of the model's sharpness is kept.
        comparison: The results of all runs.
        report: Sharpness report whose first model is the published one.
    """
    section = sharpness_in_card(path)
    if report is not None:
        section = card_section(report, report.portraits[0])
    write_run_card(path, comparison.record, comparison="\n\n".join(_sections(comparison)))
    if section is not None:
        add_sharpness_to_card(path, section)


def _sections(comparison: Comparison) -> Iterator[str]:
    """Yield the tables of a comparison, each with an explanation."""
    yield comparison_table(comparison)
    yield code_block(comparison.command)
    seeds = {len(comparison.of(arm)) for arm in comparison.arms}
    if max(seeds) > 1:
        yield (
            "Mean and 95 % confidence interval (Student's t) over seeds. A seed draws the head, "
            "order and crops of the images, label noise and a sample of the training images where "
            "there are any: the interval does not cover other data, settings or networks."
        )
    else:
        yield "One run of each, with one seed: without an interval."
    yield (
        "Differences are paired by seed, and below zero where the row's arm errs less. A gradient "
        "evaluation is one forward-backward pass over an effective batch. The minutes are of "
        "training with the evaluations and checkpoints in between, of the fastest of an arm's "
        "runs, as the machine did other work too."
    )
    if table := paired_table(comparison):
        yield (
            "Image by image: on how many images the row's arm errs in fewer seeds and on how many "
            "in more, with the p-value of McNemar's exact test (with several seeds a sign "
            f"test over the images), which is over images and not over seeds:\n\n{table}"
        )
    if comparison.trials:
        chosen_on = "a tenth of the training images, held out of training"
        if comparison.sweep_split:
            chosen_on = (
                f"the {code(comparison.sweep_split)} split, which these runs did not train on and "
                "those of the table did"
            )
        yield (
            f"Settings with more than one candidate had the least error on {chosen_on}:"
            f"\n\n{trials_table(comparison)}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Write `<name>.md` and `<name>.png` beside each `<name>.json`.

    If `sharpness/<name>-seed<seed>.json` exists beside it, a sharpness report of the published
    model by `hf_sam.diagnostics`, the card has a section on it.
    """
    names = sys.argv[1:] if argv is None else argv
    if not names:
        sys.exit("cards.py: needs the JSON of comparisons: `cards.py model_cards/*.json`.")
    try:
        for name in names:
            write_card_and_plot(Path(name))
    except (OSError, ValueError) as error:
        sys.exit(f"cards.py: {error}")


def write_card_and_plot(path: Path) -> None:
    """Write the card and the plot of one comparison, as `main` does."""
    comparison = Comparison.read(path)
    measured = path.parent / "sharpness" / f"{path.stem}-seed{comparison.record.seed}.json"
    report = Report.read(measured) if measured.is_file() else None
    write_comparison_card(path.with_suffix(".md"), comparison, report)
    plot_comparison(comparison, path.with_suffix(".png"))
    print(path.with_suffix(".md"))


if __name__ == "__main__":
    main()
