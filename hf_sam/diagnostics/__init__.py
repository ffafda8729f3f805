"""Measures how flat a minimum is: sharpness, Hessian, loss landscapes, and plots of them.

Every measurement must leave the model, the data loader and the random state exactly as they were
(`measuring.py`); a new one is a file here, and `plots.py` alone needs matplotlib.
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
