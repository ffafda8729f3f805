"""The command `hf-sam` with its subcommands finetune, compare and report."""

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from . import __version__

COMMANDS = {  # name: the module of its `main`, its help
    "finetune": ("hf_sam.finetuning.finetune", "fine-tune an image classifier with SAM"),
    "compare": ("hf_sam.comparing.compare", "compare SAM with the base optimizer over seeds"),
    "report": ("hf_sam.diagnostics.__main__", "measure how sharp one or two classifiers are"),
}
HELP = f"""\
usage: hf-sam COMMAND [--option value ...]

Sharpness-Aware Minimization for the Hugging Face Trainer, version {__version__}

commands:
{"".join(f"  {name:10}{help}{chr(10)}" for name, (_, help) in COMMANDS.items())}
examples:
  hf-sam finetune                                        scanned digits, about a minute
  hf-sam finetune --dataset oxford_pets --rho 0.05       a data set on the Hub, with its recipe
  hf-sam finetune --data_dir images --eval_share 0.1     a folder with one folder for each class
  hf-sam compare --data_dir images --eval_share 0.1 --seeds 3 --sweep rho=0.05,0.1,0.2
  hf-sam report runs/compare-images/sam-seed0 --compare runs/compare-images/base-seed0 \\
    --data images --eval_share 0.1

`hf-sam COMMAND --help` lists the options. On several devices:
  accelerate launch -m hf_sam.finetuning --dataset oxford_pets --rho 0.05"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the subcommands; an unknown name ends in a message and exit status 2."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP)
    elif name == "--version":
        print(f"hf-sam {__version__}")
    elif name in COMMANDS:
        importlib.import_module(COMMANDS[name][0]).main(arguments)
    else:
        near = get_close_matches(name, COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}."
        print(f"hf-sam: unknown command {name!r}: {remedy}", file=sys.stderr)
        sys.exit(2)
