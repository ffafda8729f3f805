"""Sharpness-Aware Minimization for the Hugging Face Trainer."""

from .buffers import running_stats_kept
from .config import SAMArguments, SAMConfig, SAMSeq2SeqConfig
from .perturbation import compute_perturbation, perturbed, take_gradients
from .replay import random_state, replayed
from .trainer import SAMMixin, SAMSeq2SeqTrainer, SAMTrainer
from .vectors import NORM_FLOOR

__all__ = [
    "NORM_FLOOR",
    "SAMArguments",
    "SAMConfig",
    "SAMMixin",
    "SAMSeq2SeqConfig",
    "SAMSeq2SeqTrainer",
    "SAMTrainer",
    "compute_perturbation",
    "perturbed",
    "random_state",
    "replayed",
    "running_stats_kept",
    "take_gradients",
]
__version__ = "0.1.0"
