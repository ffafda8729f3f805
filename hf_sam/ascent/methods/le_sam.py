"""LE-SAM: sets the rise of the loss instead of the radius of the perturbation."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vectors import NORM_FLOOR
from .method import Method, require


@dataclass(frozen=True)
class LESAM(Method):
    """Loss-equated SAM (Wang et al., arXiv 2605.10183): radius min(sigma / ||g||, rho).

    To first order the ascent raises the loss by sigma, whatever the gradient's norm; `rho` is the
    largest radius. `rho_schedule` lowers sigma and rho by the same factor (the paper lowers sigma
    alone, along a cosine, over its last epochs).

    With gradient accumulation, the radius is too small by a factor of the number of micro-batches
    for models that accept `num_items_in_batch` and ignore it (BERT, T5), as the Trainer does not
    divide their loss.

    Cost: two forward-backward passes where it ascends.
    """

    sigma: float = 0.0  # target rise of the loss; required, as no default fits all losses

    is_euclidean: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2605.10183"

    def require_valid(self) -> None:
        """Raise a ValueError unless sigma is given and positive."""
        remedy = "set it in `method_args`, in units of the loss; inf is SAM"
        require(self.sigma > 0, "`sigma` of le_sam", "above 0", self.sigma, remedy)

    def share_of_rho(self, rho: float, share: float, grad_norm: Tensor) -> Tensor:
        """Return min(sigma_t / (||g|| rho_t), 1), which is 1 for an infinite sigma."""
        return (self.sigma * share / (grad_norm * rho).clamp(min=NORM_FLOOR)).clamp(max=1.0)
