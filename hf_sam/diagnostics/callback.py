"""A Trainer callback that logs sharpness at each evaluation, measured on a few fixed batches."""

from collections.abc import Iterable
from itertools import islice
from statistics import fmean
from typing import Any

from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from .directions import gaussians
from .hessian import Product, flat
from .lanczos import lanczos
from .loss import LossFunction, model_loss
from .measuring import measuring
from .of_trainer import of_trainer
from .sharpness import ascent_step, mean_rise, rise

logger = logging.get_logger(__name__)


class SharpnessCallback(TrainerCallback):
    """Measures the sharpness at each evaluation and logs it to the loggers of `report_to`.

    ```python
    trainer.add_callback(SharpnessCallback(trainer, rho=0.05))
    ```

    The entries are `probe_loss`, `probe_worst_case` (the rise after SAM's ascent step of length
    rho), `probe_average` (the mean rise over random directions) and, optionally,
    `probe_lambda_max`. Training is not affected: weights, buffers and random draws are the same
    without it. The batches are fetched once: if the data set draws from a random generator of its
    own, that advances it, so pass another object as `data`. If measuring fails, it warns once.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        data: Dataset[Any] | None = None,
        rho: float = 0.05,
        sigma: float = 0.01,
        max_batches: int = 4,
        directions: int = 3,
        lanczos_steps: int = 0,
        seed: int = 0,
    ) -> None:
        """Set what to measure; no batch is fetched before the first evaluation.

        Each evaluation costs, over `max_batches` batches of the evaluation's size, one
        forward-backward and 2 + 2 `directions` forward passes, and for each Lanczos step two
        forward-backward passes more.

        Args:
            trainer: The Trainer whose model is measured, and to whose log it is written.
            data: Data set whose first batches are used; None for the training data.
            rho: L2 radius in parameter space.
            sigma: Standard deviation of the random directions, in each weight.
            max_batches: Number of batches, the same ones at every evaluation.
            directions: Number of random directions, the same ones at every evaluation.
            lanczos_steps: Hessian-vector products for lambda_max, which is underestimated, by a
                few percent with 10; 0 to leave it out.
            seed: Seed of the directions.

        Raises:
            ValueError: If a number is out of its range.
        """
        if not (rho > 0 and sigma > 0) or max_batches < 1 or directions < 1 or lanczos_steps < 0:
            raise ValueError(
                "`rho` and `sigma` must be > 0, `max_batches` and `directions` >= 1 and "
                f"`lanczos_steps` >= 0, got {rho}, {sigma}, {max_batches}, {directions} and "
                f"{lanczos_steps}."
            )
        self._trainer = trainer
        self._data = data
        self._rho = rho
        self._sigma = sigma
        self._max_batches = max_batches
        self._directions = directions
        self._lanczos_steps = lanczos_steps
        self._seed = seed
        self._batches: list[Any] = []
        self._loss: LossFunction = model_loss
        self._measured_at: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure at the next evaluation, whatever the step of the last one."""
        self._measured_at = None

    on_train_end = on_train_begin  # other weights may have been loaded

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure and log, once a step; training continues if the loss is not finite."""
        if self._measured_at == state.global_step:
            return  # an evaluation on each of several data sets
        self._measured_at = state.global_step
        try:
            entries = self.measure()
        except Exception as error:  # whatever fails here, the training goes on
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            logger.warning_once(f"SharpnessCallback logs nothing: {kind}{error}")
            return
        self._trainer.log(entries)

    def measure(self) -> dict[str, float]:
        """Measure the current model.

        Returns:
            The log entries.
        """
        batches: Iterable[Any] = self._batches
        if not self._batches:
            _, batches, self._loss = of_trainer(self._trainer, self._data)
        model, most = self._trainer.model, self._max_batches
        with measuring(model, batches, self._loss, max_batches=most, seed=self._seed) as objective:
            self._batches = [part.batch for part in objective.parts]
            weights = objective.weights
            step = ascent_step(objective, objective.gradient(weights)[1], self._rho)
            draws = islice(gaussians(weights, seed=self._seed), self._directions)
            entries = {
                "probe_loss": objective.setup.loss,
                "probe_worst_case": rise(objective, step),
                "probe_average": fmean(mean_rise(objective, z, self._sigma) for z in draws),
            }
            if self._lanczos_steps:
                start = flat(next(gaussians(weights, seed=self._seed)))
                nodes, _ = lanczos(Product(objective), start, self._lanczos_steps)
                entries["probe_lambda_max"] = float(nodes[-1])
            return entries
