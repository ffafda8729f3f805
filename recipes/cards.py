"""Cards and plots from the JSON of comparisons.

python recipes/cards.py model_cards/*.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from comparison import Comparison, comparison_table, trials_table
from plots import plot_comparison

from hf_sam.model_card import write_run_card


def write_comparison_card(path: Path, comparison: Comparison) -> None:
    """Write the card of the model that a comparison publishes."""
    parts = [comparison_table(comparison), f"```\n{comparison.command}\n```"]
    if comparison.trials:
        parts.append(
            "Each arm's settings had the least error on a tenth of the training images, held out "
            f"of training:\n\n{trials_table(comparison)}"
        )
    write_run_card(path, comparison.record, comparison="\n\n".join(parts))


def main(argv: Sequence[str] | None = None) -> None:
    """Write `<name>.md` and `<name>.png` beside each `<name>.json`."""
    for name in sys.argv[1:] if argv is None else argv:
        comparison = Comparison.read(Path(name))
        write_comparison_card(Path(name).with_suffix(".md"), comparison)
        plot_comparison(comparison, Path(name).with_suffix(".png"))
        print(Path(name).with_suffix(".md"))


if __name__ == "__main__":
    main()
