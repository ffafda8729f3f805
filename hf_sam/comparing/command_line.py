"""The options of `hf-sam compare` that `hf-sam finetune` does not have."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

HELP = """\
Each arm is trained with every seed, from the same start, on the same images in the same order:

  base      the base optimizer
  base_2x   the base optimizer at twice the epochs: as many gradient evaluations as SAM
  sam       SAM

All other options are those of hf-sam finetune and hold for every arm. Data without a split to
measure on need --eval_share 0.1. Finished runs are skipped, and an unfinished one goes on from its
last checkpoint: type the same command again.
"""


def command_line_parser() -> ArgumentParser:
    """Return the parser of the options that `hf-sam finetune` does not have."""
    parser = ArgumentParser(
        "hf-sam compare",
        usage="hf-sam compare [--seeds N] [--sweep NAME=VALUE,VALUE ...] [--option value ...]",
        description=HELP,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds, 0 and up.")
    parser.add_argument("--first_seed", "--first-seed", type=int, default=0, help="The first seed.")
    parser.add_argument(
        "--sweep",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="Choose each arm's settings from the grid of these values, by the error on a tenth of "
        "the training images that is held out. ARM:NAME=VALUE is for one arm only.",
    )
    parser.add_argument(
        "--sweep_seeds",
        "--sweep-seeds",
        type=int,
        default=1,
        help="Choose by the mean error over this many seeds, each with another tenth. A tenth of a "
        "small data set is imprecise: 150 images leave a standard error of 4 points.",
    )
    parser.add_argument(
        "--sweep_split",
        "--sweep-split",
        metavar="SPLIT",
        help="Choose on this split of the data (such as validation) instead; the final runs then "
        "train on it too. With --label_noise, its labels are clean when settings are chosen and "
        "noisy in the final runs.",
    )
    parser.add_argument(
        "--arm",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "OPTION=VALUE"),
        help="Add an arm with options of its own: --arm asam adaptive=true rho=0.5. The name of a "
        "standard arm adds options to that one. seeds=3 uses the first three seeds only.",
    )
    parser.add_argument(
        "--arms", nargs="+", action="extend", metavar="NAME", help="Train only these arms."
    )
    parser.add_argument(
        "--output_dir",
        "--output-dir",
        help="Folder for the runs and results. Unset, it is what --config has, or "
        "runs/compare-<data>.",
    )
    return parser
