"""The command `hf-sam compare`: trains all runs of a comparison and writes its results.

hf-sam compare --dataset oxford_pets --seeds 5 --sweep rho=0.02,0.05,0.1,0.2
"""

import gc
import importlib.util
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import PartialState

from ..finetuning.checkpoints import last_complete
from ..finetuning.disk import DiskFullError, full_disk_named
from ..finetuning.finetune import RecipeError, train
from ..finetuning.folder import (
    FolderInUseError,
    claimed,
    has_ended,
    record_of,
    remove_checkpoints,
    run_options,
)
from ..finetuning.hub import HubError, create_repo, push
from ..finetuning.image_errors import ErrorsOfRun
from ..finetuning.loading import require_images_to_measure_on
from ..finetuning.record import command_of
from ..reporting.model_card import METRICS, RunRecord
from .cards import write_comparison_card
from .choosing import require_split_for_choosing
from .comparison import METRIC, Comparison, Result, Trial, comparison_table, held_out_error
from .plan import Arm, Plan, parse_plan
from .plots import plot_comparison

RunOfPlan = tuple[Mapping[str, str], Path]  # options and folder
FinalRun = tuple[str, Mapping[str, str], int]  # arm, settings and seed
WAIT = 5  # seconds between checks whether other processes have finished their runs


def main(argv: Sequence[str] | None = None, *, program: str = "hf-sam compare") -> Comparison:
    """Train all runs of the plan and return the results.

    Args:
        argv: The command-line arguments; None for those of the process.
        program: The command's name in messages.
    """
    argv = sys.argv[1:] if argv is None else argv
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit(f"{program}: the plot needs matplotlib: `pip install 'hf-sam[plots]'`.")
    try:
        plan = parse_plan(argv)
        with full_disk_named(plan.output_dir):
            return compare(plan, command_of("compare", argv))
    except (RecipeError, HubError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    except DiskFullError as error:
        sys.exit(f"{program}: {error}; then the same command goes on where it stopped.")
    except KeyboardInterrupt:
        sys.exit(f"{program}: interrupted; the same command goes on where it stopped.")


def compare(plan: Plan, command: str) -> Comparison:
    """Choose each arm's settings, train every seed, and write the results after each seed.

    Raises:
        RecipeError: For invalid input.
        HubError: Before training if pushing is not possible; after training if it failed.
    """
    args, repo_id = plan.args, None
    if args.push_to_hub and args.process_index == 0:
        name = args.hub_model_id or plan.output_dir.absolute().name
        finished = published_run(plan, {arm.name: arm.options for arm in plan.arms})[1]
        repo_id = create_repo(name, finished, private=args.hub_private_repo)
    if plan.sweep_split:
        require_split_for_choosing(plan.sweep_split, plan.parsed({})[0])
    runs = Runs(plan)
    runs.require_own_folders()
    trial_runs = [runs.trial_run(*run) for run in plan.sweep]
    if not all(runs.has_ended(*run) for run in trial_runs):
        require_images_to_measure_on(plan.parsed(plan.choosing.final)[0])
    for _ in runs.finish(trial_runs):
        pass
    trials = [runs.trial(*run) for run in plan.sweep]
    settings = {arm.name: choose(arm, trials) for arm in plan.arms}
    published, folder = published_run(plan, settings)
    wanted = [(a.name, settings[a.name], s) for s in plan.seeds for a in plan.arms if s in a.seeds]
    written = 0
    for _ in runs.finish([runs.final_run(*run) for run in wanted]):
        results = [runs.result(*run) for run in runs.whole_seeds(wanted)]
        if len(results) > written:
            record, written = runs.records[folder], len(results)
            comparison = Comparison(command, record, published, trials, results, plan.sweep_split)
            if PartialState().is_main_process:
                comparison.write(plan.output_dir / "comparison.json")
                print(f"\n{comparison_table(comparison)}\n", flush=True)
    if PartialState().is_main_process:
        write_comparison_card(folder / "README.md", comparison)
        plot_comparison(comparison, plan.output_dir / "comparison.png")
        print(f"results and plot: {plan.output_dir}; card: {folder}", flush=True)
    if repo_id is not None:
        for name in ("comparison.json", "comparison.png"):
            shutil.copy(plan.output_dir / name, folder)
        print(f"pushed to {push(folder, repo_id)}")
    return comparison


def published_run(plan: Plan, settings: Mapping[str, Mapping[str, str]]) -> tuple[str, Path]:
    """Return the arm that is published (the first with SAM, else the first), its run's folder."""
    arm = next((n for n, options in settings.items() if plan.has_sam(options)), plan.arms[0].name)
    return arm, plan.output_dir / f"{arm}-seed{plan.seeds[0]}"


def choose(arm: Arm, trials: Sequence[Trial]) -> Mapping[str, str]:
    """Return an arm's settings with the lowest mean error (the first of equals), or its options."""
    own = [trial.settings for trial in trials if trial.arm == arm.name]
    return min(
        own, key=lambda settings: held_out_error(trials, arm.name, settings), default=arm.options
    )


class Runs:
    """Trains the unfinished runs of a plan, and prints the progress.

    Several processes of one machine may work on one plan: each takes the next run that no other is
    training, and waits for the others where it needs their results.
    """

    def __init__(self, plan: Plan) -> None:
        """Count the runs and add up their costs."""
        self.plan = plan
        runs: list[Mapping[str, str]] = [settings for _, settings, _ in plan.sweep]
        runs += [arm.options for arm in plan.arms for _ in arm.seeds]
        self.left = sum(plan.cost(options) for options in runs)  # in units of Plan.cost
        self.runs = len(runs)
        self.records: dict[Path, RunRecord] = {}  # of the finished runs, by folder
        self.seconds, self.spent = 0.0, 0.0  # time and cost of the runs of this process

    def require_own_folders(self) -> None:
        """Raise a ValueError, before training, if a run's folder holds something else."""
        for run in self.plan.sweep:
            self.has_ended(*self.trial_run(*run))
        for arm in self.plan.arms:
            for seed in [] if self.plan.trials(arm) else arm.seeds:
                self.has_ended(*self.final_run(arm.name, arm.options, seed))

    def trial_run(self, arm: str, settings: Mapping[str, str], seed: int) -> RunOfPlan:
        """Return the options and the folder of a trial run, which is for choosing settings."""
        point = [f"{option}={value}" for option, value in settings.items()]
        name = "-".join([arm, *point, f"seed{seed}"])
        options = {**settings, **self.plan.choosing.trial, "seed": str(seed)}
        return options, self.plan.output_dir / "sweep" / name

    def final_run(self, arm: str, settings: Mapping[str, str], seed: int) -> RunOfPlan:
        """Return the options and the folder of a final run, measured on the evaluation split."""
        options = {**settings, **self.plan.choosing.final, "seed": str(seed)}
        return options, self.plan.output_dir / f"{arm}-seed{seed}"

    def has_ended(self, options: Mapping[str, str], folder: Path) -> bool:
        """Return whether a run has finished; raise a ValueError if its folder holds other files."""
        return has_ended(folder, run_options(*self.plan.parsed(options)))

    def trial(self, arm: str, settings: Mapping[str, str], seed: int) -> Trial:
        """Return the result of a trial run."""
        record = self.records[self.trial_run(arm, settings, seed)[1]]
        return Trial(arm, settings, record.metrics[METRIC], seed)

    def result(self, arm: str, settings: Mapping[str, str], seed: int) -> Result:
        """Return the result of a final run."""
        _, folder = self.final_run(arm, settings, seed)
        record = self.records[folder]
        metrics = {metric: record.metrics[metric] for metric in METRICS}
        cost = record.gradient_evaluations, record.seconds
        shown = {"rho": f"{record.sam['rho'] if record.sam else 0:g}"}
        shown["learning_rate"] = f"{record.hyperparameters['learning_rate']:g}"
        errors = ErrorsOfRun.read(folder)
        return Result(arm, seed, shown | dict(settings), metrics, *cost, errors)

    def whole_seeds(self, wanted: Sequence[FinalRun]) -> list[FinalRun]:
        """Return the runs of the first seeds, up to the first with an unfinished run."""
        left = [run[2] for run in wanted if self.final_run(*run)[1] not in self.records]
        return [run for run in wanted if not left or run[2] < min(left)]

    def finish(self, runs: Sequence[RunOfPlan]) -> Iterator[None]:
        """Train all unfinished runs, and yield after each run that has finished."""
        left, busy = list(runs), []
        while left:
            for run in left:
                try:
                    self.run(*run)
                except FolderInUseError:
                    if PartialState().num_processes > 1:  # only one of them would know
                        raise
                    if run not in busy:
                        PartialState().print(f"{run[1].name}: another process trains it")
                        busy.append(run)
                else:
                    left.remove(run)
                    yield
                    break  # start again, as others may have finished runs
            else:
                time.sleep(WAIT)

    def run(self, options: Mapping[str, str], folder: Path) -> None:
        """Train one run of the plan to its end, unless it has finished.

        Raises:
            FolderInUseError: If another process is training it.
        """
        began = time.monotonic()
        label = f"[{len(self.records) + 1}/{self.runs}] {folder.name}"
        with ExitStack() as held:
            if is_new := not self.has_ended(options, folder):
                if PartialState().is_main_process:
                    held.enter_context(claimed(folder))
                is_new = not self.has_ended(options, folder)  # another process may have finished it
            if is_new:
                self.train(options, folder, label)
        self.left -= self.plan.cost(options)
        if PartialState().is_main_process:
            remove_checkpoints(folder)
        record = self.records[folder] = record_of(folder)
        took = f"{(time.monotonic() - began) / 60:.1f} min" if is_new else "finished before"
        left = f"{self.left * self.seconds / self.spent / 60:.0f}" if self.spent else "?"
        error = f"{record.metrics[METRIC]:.2f} % error"
        PartialState().print(f"{label}: {error}, {took}; {left} min left", flush=True)

    def train(self, options: Mapping[str, str], folder: Path, label: str) -> None:
        """Train one run of the plan, and add its time to the total."""
        began = time.monotonic()
        PartialState().print(f"\n{label}: {folder}", flush=True)
        try:
            self._train(options, folder)
        except RecipeError as error:
            raise RecipeError(f"{folder.name}: {error}") from error
        except ValueError as error:  # a fault in the training, no invalid input
            raise RuntimeError(f"{folder.name}: training failed") from error
        self.seconds += time.monotonic() - began
        self.spent += self.plan.cost(options)

    def _train(self, options: Mapping[str, str], folder: Path) -> None:
        """Train a run to its end, from its last checkpoint if there is one."""
        resumed = last_complete(folder) is not None
        PartialState().wait_for_everyone()
        torch.compiler.reset()  # else each new model counts as a recompilation of the last
        arguments = [*self.plan.arguments_of(options), f"--output_dir={folder}"]
        arguments += ["--push_to_hub=false"]  # overrides a file
        arguments += ["--resume_from_checkpoint=last"] * resumed
        train(arguments, from_file=self.plan.from_file, is_claimed=True)
        PartialState().wait_for_everyone()
        gc.collect()
