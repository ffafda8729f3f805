"""The ascent of a run: its method with the method's state, and the parameters it perturbs."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers.utils import logging

from ..ascent.fidelity import is_low_precision, perturbation_fidelity
from ..ascent.methods import Memory
from ..ascent.perturbation import compute_perturbation
from ..ascent.selection import perturbed_parameters
from ..ascent.vectors import Vector, gradient_norm, multiply
from ..backends import Engine
from ..config import SAMArguments
from .backward import backward_to
from .rounding import require_fidelity

logger = logging.get_logger(__name__)

Params = Mapping[str, Tensor]  # the trainable parameters by name


class Ascent:
    """Computes the perturbation from the clean gradient, and the gradient for the descent."""

    def __init__(
        self,
        sam: SAMArguments,
        model: nn.Module | None = None,
        accelerator: Accelerator | None = None,
        engine: Engine | type[Engine] = Engine,
    ) -> None:
        """Set up the method that the settings name.

        Args:
            sam: SAM's settings.
            model: The model, unwrapped.
            accelerator: Gathers what the ranks have measured.
            engine: Says how the passes round the weights.

        Raises:
            ValueError: If `perturb` names modules that the model does not have.
        """
        self.name, self.method = sam.method, sam.chosen_method
        self.memory: Memory = {}
        self.fidelity: Tensor | None = None  # (2,) of the first perturbation since the last log
        self._sam, self._accelerator, self._engine = sam, accelerator, engine
        self._names = None if model is None else _perturbed_names(model, sam.perturb)
        self._is_fidelity_known = False

    @property
    def is_ready(self) -> bool:
        """Whether it is that of a training whose model has been checked."""
        return self._accelerator is not None

    def backward_as_far_as_used(
        self, params: Params, engine: Engine, *, reduced: bool
    ) -> AbstractContextManager[None]:
        """Have a clean pass compute no gradients but those that the method will use.

        Args:
            params: The trainable parameters by name.
            engine: Says what may be left out.
            reduced: Whether the pass reduces its gradients over the ranks.
        """
        if self._accelerator is None or self._names is None or self.method.keeps_clean_grad:
            return nullcontext()
        moved = [param for name, param in params.items() if name in self._names]
        return backward_to(self._accelerator, lambda: engine.leaves(moved, reduced=reduced))

    def used(self, params: Params, clean_grad: list[Tensor | None]) -> list[Tensor | None]:
        """Return what the method will use of the clean gradient; None in place of the rest."""
        return clean_grad if self.method.keeps_clean_grad else self._chosen(params, clean_grad)

    def kept(self, clean_grad: Vector) -> list[Tensor | None] | None:
        """Return a copy of the clean gradient if the method's `finish` needs it, else None."""
        if not self.method.keeps_clean_grad:
            return None
        return [None if grad is None else grad.clone() for grad in clean_grad]

    def from_clean_grad(
        self, params: Params, clean_grad: list[Tensor | None], *, rho: float, scale: Tensor | float
    ) -> tuple[list[Tensor | None], Tensor]:
        """Turn the clean gradient into the perturbation.

        Args:
            params: The trainable parameters by name.
            clean_grad: Aligned with them. Consumed.
            rho: The radius at this step.
            scale: Factor by which the mean loss was multiplied before the backward pass.

        Returns:
            The perturbation, aligned with `params`, and the L2 norm of the gradient of the mean
            loss in the perturbed parameters, of shape ().
        """
        clean_grad = self._chosen(params, clean_grad)
        if all(grad is None for grad in clean_grad):
            logger.warning_once(
                "A clean pass has left no gradient in what is perturbed, so that its step is the "
                "base optimizer's. If that is not meant, see whether a hook takes gradients away."
            )
        scaled_norm = gradient_norm(clean_grad)
        scale = scale.to(scaled_norm.device) if isinstance(scale, Tensor) else scale
        norm = scaled_norm / scale
        memory = self._memory_of(params)
        direction = self.method.direction(list(params), clean_grad, scale, memory)
        is_gradient = direction is clean_grad
        perturbation = self._along(params, direction, rho, scaled_norm if is_gradient else None)
        share = self.method.share_of_rho(rho, rho / (self._sam.rho or 1.0), norm)
        if share is not None:
            multiply([epsilon for epsilon in perturbation if epsilon is not None], share)
        self._note_fidelity(params, perturbation)
        return perturbation, norm

    def from_memory(
        self, params: Params, optimizer: Optimizer | None, *, rho: float
    ) -> list[Tensor | None]:
        """Return the perturbation of a method without a clean pass; all None where rho is 0.

        Args:
            params: The trainable parameters by name.
            optimizer: The base optimizer, whose state some methods read.
            rho: The radius at this step.
        """
        if rho == 0:
            return [None] * len(params)
        state = {} if optimizer is None else optimizer.state
        known = self.method.known_direction(params, state, self._memory_of(params))
        perturbation = self._along(params, self._chosen(params, known), rho)
        self._note_fidelity(params, perturbation)
        return perturbation

    def finish(self, params: Params, clean_grad: Vector | None) -> None:
        """Let the method change the descent gradient of the effective batch, in `p.grad`.

        Args:
            params: The trainable parameters by name.
            clean_grad: The clean gradient, if the method keeps it and the step has ascended.
        """
        self.method.finish(params, clean_grad, self._memory_of(params))

    def _memory_of(self, params: Params) -> Memory:
        """Return the memory, without what a callback has frozen or given another shape."""
        for name in list(self.memory):
            if name not in params or params[name].shape != self.memory[name].shape:
                del self.memory[name]
        return self.memory

    def _chosen(self, params: Params, vector: list[Tensor | None]) -> list[Tensor | None]:
        if self._names is None:
            return vector
        pairs = zip(params, vector, strict=True)
        return [x if name in self._names else None for name, x in pairs]

    def _along(
        self,
        params: Params,
        direction: list[Tensor | None],
        rho: float,
        l2_norm: Tensor | None = None,
    ) -> list[Tensor | None]:
        sam = self._sam
        return compute_perturbation(
            params,
            direction,
            rho=rho,
            adaptive=sam.adaptive,
            eta=sam.eta,
            perturbation_norm=sam.perturbation_norm,
            l2_norm=l2_norm,
        )

    def _note_fidelity(self, params: Params, perturbation: Vector) -> None:
        """Measure the fidelity of a perturbation; warn or raise if the first one's is low."""
        dtype = self._engine.pass_dtype
        if self.fidelity is not None or not is_low_precision(params.values(), dtype):
            return
        fidelity = perturbation_fidelity(params.values(), perturbation, dtype)
        # Weights of which a pass has rounded copies leave the grid of those while they are trained.
        if not self._is_fidelity_known or dtype is not None:
            of_ranks = fidelity.unsqueeze(0)
            if self._accelerator is not None:
                of_ranks = self._accelerator.gather(of_ranks.to(self._accelerator.device))
            if of_ranks.isnan().any():
                return  # all ranks wait for one that can be judged
            remedy, allowed = self._engine.float32_remedy, self._sam.allow_rounded_perturbation
            is_first = not self._is_fidelity_known
            require_fidelity(of_ranks, remedy=remedy, allowed=allowed, warns=is_first)
            self._is_fidelity_known = True
        if not fidelity.isnan().any():
            self.fidelity = fidelity


def _perturbed_names(model: nn.Module, perturb: str) -> set[str] | None:
    """Name the parameters that are perturbed, as `Parts` names them; None for all."""
    chosen = perturbed_parameters(model, perturb)
    if chosen is None:
        return None
    names = model.named_parameters()
    return {name.replace("_orig_mod.", "") for name, param in names if param in chosen}
