"""The plan of a comparison: its arms, the grid from which settings are chosen, and the seeds."""

import dataclasses
import itertools
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import SAMArguments, SAMConfig
from ..finetuning.fields import DataOptions, ModelOptions
from ..finetuning.folder import LENGTH
from ..finetuning.options import parse_options, read_config, with_recipe
from ..reporting.model_card import without_tokens
from ..step.planning import passes_per_step
from .choosing import Choosing
from .command_line import command_line_parser

# Options that the plan sets, or that are the same for all arms; prefixes of names.
OF_THE_PLAN = (
    *("seed", "data_seed", "holdout", "resume_from_checkpoint", "load_best_model_at_end"),
    "auto_find_batch_size",  # arms of different batches are no comparison
)
COMMON = (
    *(*OF_THE_PLAN, "config", "output_dir", "dataset", "data_dir", "max_eval_samples", "eval_"),
    *("push_to_hub", "hub_", "print_config"),
)
SAM_FIELDS = {field.name for field in dataclasses.fields(SAMArguments)}
SAM_FIELDS.remove("weight_average")  # which the base optimizer's runs have too


@dataclass(frozen=True)
class Arm:
    """One way to train: the options in which it differs from the common ones."""

    name: str
    options: Mapping[str, str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Plan:
    """All runs that the command line asks for."""

    common: Sequence[str]  # arguments of hf-sam finetune, for all arms
    from_file: Sequence[str]  # of `--config`, read once: the file may be edited while runs train
    args: SAMConfig  # parsed from the common arguments
    arms: Sequence[Arm]
    grid: Mapping[tuple[str, str], Sequence[str]]  # values by arm ("" for all) and option
    seeds: Sequence[int]
    sweep_seeds: Sequence[int]  # of the trial runs, by which settings are chosen
    sweep_split: str | None  # for choosing settings; None: a tenth of the training images
    choosing: Choosing
    output_dir: Path

    def has_sam(self, options: Mapping[str, str]) -> bool:
        """Whether a run with these options uses SAM."""
        return self.parsed(options)[2].rho > 0

    def parsed(self, options: Mapping[str, str]) -> tuple[DataOptions, ModelOptions, SAMConfig]:
        """Return the parsed options of a run."""
        arguments = [*self.arguments_of(options), f"--output_dir={self.output_dir}"]
        return parse_options(arguments, from_file=self.from_file)

    def trials(self, arm: Arm) -> list[dict[str, str]]:
        """Return the points of the grid for an arm; none if there is nothing to choose."""
        swept = self.swept(arm)
        points = itertools.product(*(self.grid[key] for key in swept))
        names = [name for _, name in swept]
        return [dict(zip(names, point, strict=True)) for point in points] if names else []

    def swept(self, arm: Arm) -> list[tuple[str, str]]:
        """Return the keys of the grid whose values an arm takes."""
        keys: dict[str, tuple[str, str]] = {}
        for whose in ("", arm.name):  # an arm's own values replace the common ones
            keys |= {name: (of, name) for of, name in self.grid if of == whose}
        has_sam = self.has_sam(arm.options)
        names = [n for n in keys if n not in arm.options and (has_sam or n not in SAM_FIELDS)]
        return [keys[name] for name in names]

    @property
    def sweep(self) -> list[tuple[str, dict[str, str], int]]:
        """Arm, settings and seed of each trial run."""
        return [
            (arm.name, {**arm.options, **point}, seed)
            for arm in self.arms
            for point in self.trials(arm)
            for seed in self.sweep_seeds
        ]

    def arguments_of(self, options: Mapping[str, str]) -> list[str]:
        """Return a run's arguments of hf-sam finetune; the last value of an option counts."""
        return [*self.common, *(f"--{name}={value}" for name, value in options.items())]

    def cost(self, options: Mapping[str, str]) -> float:
        """Return a run's approximate gradient evaluations, relative to the base optimizer's."""
        args = self.parsed(options)[2]
        length = LENGTH[self.args.max_steps > 0]
        return passes_per_step(args) * getattr(args, length) / getattr(self.args, length)


def parse_plan(argv: Sequence[str]) -> Plan:
    """Parse the plan from command-line arguments.

    Raises:
        ValueError: With rule, value and remedy.
    """
    parser = command_line_parser()
    own, common = parser.parse_known_args(argv)
    common = with_recipe(common)  # the same for all arms, also for those with another network
    if "--print_config" in common:
        raise ValueError("`print_config` is hf-sam finetune's: leave it out.")
    from_file = read_config(common, elsewhere=vars(own))
    folder = own.output_dir or parser.parse_known_args(from_file)[0].output_dir
    data, _, args = parse_options(
        [*common, f"--output_dir={folder or 'runs/compare'}"], from_file=from_file
    )
    _require_own_options(own, data, args)
    name = Path(os.path.abspath(data.dataset or data.data_dir or "digits")).name  # also of `.`
    arms = _arms(own, args)
    plan = Plan(
        common=common,
        from_file=from_file,
        args=args,
        arms=arms,
        grid=_grid(own.sweep, arms),
        seeds=range(own.first_seed, own.first_seed + own.seeds),
        sweep_seeds=range(own.first_seed, own.first_seed + own.sweep_seeds),
        sweep_split=own.sweep_split,
        choosing=Choosing.on(own.sweep_split, data),
        output_dir=Path(folder or f"runs/compare-{name}").expanduser(),
    )
    _require_effect(plan)
    for options in [*(arm.options for arm in plan.arms), *(run[1] for run in plan.sweep)]:
        if own.sweep_split and "train_split" in options:
            raise ValueError(
                "`train_split` must be the same for all arms with `sweep_split`: give it as "
                "--train_split, or leave it out."
            )
        plan.parsed(options)  # finds mistakes before hours of training
    return plan


def _require_own_options(own: Namespace, data: DataOptions, args: SAMConfig) -> None:
    """Raise a ValueError for options that do not go with a plan."""
    for name in ("seeds", "sweep_seeds"):
        if (value := getattr(own, name)) < 1:
            raise ValueError(f"`{name}` must be >= 1, got {value}: 5 seeds are the paper's.")
    if args.rho == 0:
        raise ValueError("`rho` must be > 0 here: the arms base and base_2x are without SAM.")
    for name in OF_THE_PLAN:
        value = getattr(data if name == "holdout" else args, name)
        if value != getattr(SAMConfig, name, None):  # its default
            remedy = "pass `--eval_share`" if name == "holdout" else "remove it"
            raise ValueError(
                f"`{name}` is set by the plan, for each run: {remedy}, also in the `--config` file."
            )
    for name in ("sweep_split", "sweep_seeds"):
        if getattr(own, name) not in (None, 1) and not own.sweep:
            raise ValueError(f"`{name}` has no effect without `--sweep`: leave it out.")


def _require_effect(plan: Plan) -> None:
    """Raise a ValueError for a point of the grid that no arm takes."""
    taken = {key for arm in plan.arms for key in plan.swept(arm)}
    for of, name in plan.grid:
        if (of, name) not in taken:
            point, who = (f"{of}:{name}", f"the arm {of}") if of else (name, "every arm")
            raise ValueError(
                f"`--sweep` must have an effect, got {point}, which {who} sets itself or, being "
                "without SAM, cannot use: leave it out here or in `--arm`."
            )


def _arms(own: Namespace, args: SAMConfig) -> list[Arm]:
    twice = {"num_train_epochs": f"{2 * args.num_train_epochs:g}"}
    if args.max_steps > 0:
        twice = {"max_steps": str(2 * args.max_steps)}
    arms: dict[str, dict[str, str]] = {"base": {"rho": "0"}, "base_2x": {"rho": "0"} | twice}
    arms["sam"] = {}
    for name, *options in own.arm:
        if not re.fullmatch(r"\w[\w.-]*", name) or not options:
            raise ValueError(
                f"`--arm` must have a name of letters and digits and options after it, got {name!r}"
                f" and {options}: --arm asam adaptive=true rho=0.5."
            )
        arms[name] = arms.get(name, {}) | dict(_option(option) for option in options)
    (without_effect,) = set(LENGTH) - set(twice)
    if any(without_effect in options for options in arms.values()):
        raise ValueError(f"`{without_effect}` has no effect here: the arms' length is {twice}.")
    wanted = own.arms or list(arms)
    if unknown := [name for name in wanted if name not in arms]:
        raise ValueError(f"`arms` must be of {', '.join(arms)}, got {unknown[0]}: see `--arm`.")
    return [_arm(name, arms[name], own) for name in arms if name in wanted]


def _arm(name: str, options: dict[str, str], own: Namespace) -> Arm:
    seeds = options.pop("seeds", str(own.seeds))
    if not seeds.isdecimal() or not 1 <= int(seeds) <= own.seeds:
        raise ValueError(
            f"`seeds` of the arm {name} must be from 1 to {own.seeds}, got {seeds}: `--seeds` is "
            "for all arms."
        )
    return Arm(name, options, range(own.first_seed, own.first_seed + int(seeds)))


def _grid(points: Sequence[str], arms: Sequence[Arm]) -> dict[tuple[str, str], list[str]]:
    grid: dict[tuple[str, str], list[str]] = {}
    for point in points:
        # values may have colons of their own: perturb=last:0.33
        of, _, rest = point.partition(":") if ":" in point.partition("=")[0] else ("", "", point)
        name, values = _option(rest)
        if of and of not in [arm.name for arm in arms]:
            raise ValueError(f"`--sweep` must name an arm before the colon, got {of}: see `--arm`.")
        if (of, name) in grid or name in LENGTH:
            raise ValueError(
                f"`--sweep` must name each option once, and not {' or '.join(LENGTH)}, got {name}: "
                "arms of another length are `--arm long num_train_epochs=30`."
            )
        grid[of, name] = values.split(",")
        if "" in grid[of, name] or len(set(map(_number, grid[of, name]))) < len(grid[of, name]):
            raise ValueError(
                f"`--sweep` must name each value of an option once, got {name}={values}: each is a "
                "run."
            )
    return grid


def _number(text: str) -> float | str:
    """Return a value by which 0.1 and 1e-1 are one."""
    try:
        return float(text)
    except ValueError:
        return text


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")  # as argparse takes them too
    if not (name and equals and value) or "/" in value:
        shown = without_tokens([text])[0]
        raise ValueError(f"settings must be written NAME=VALUE, without slashes, got {shown}.")
    if name.startswith(COMMON) and name != "seeds":
        raise ValueError(
            f"`{name}` is the same for all arms: give it as --{name}, or leave it out."
        )
    return name, value
