"""How flat a minimum is: in numbers, and in pictures (`hf_sam.diagnostics.plots`).

Each measurement is a function of a model and batches that gives a frozen result, in a file of its
own; `report.py` gathers the results, and plots, page and card read them there. A measurement leaves
the model as it was, by `measuring.py`.
"""

from .callback import SharpnessCallback
from .hessian import Density, Hessian, hessian
from .landscape import Landscape, landscape, line_between
from .loss import model_loss
from .measuring import measuring
from .objective import Setup
from .of_trainer import of_trainer
from .rho_scan import RhoScan, rho_scan
from .sharpness import Sharpness, sharpness

__all__ = [
    "Density",
    "Hessian",
    "Landscape",
    "RhoScan",
    "Setup",
    "Sharpness",
    "SharpnessCallback",
    "hessian",
    "landscape",
    "line_between",
    "measuring",
    "model_loss",
    "of_trainer",
    "rho_scan",
    "sharpness",
]
