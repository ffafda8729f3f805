"""Sharpness-Aware Minimization for the Hugging Face Trainer."""

from .ascent.perturbation import compute_perturbation, perturbed, take_gradients
from .ascent.vectors import NORM_FLOOR
from .config import SAMArguments, SAMConfig, SAMSeq2SeqConfig
from .step.buffers import running_stats_kept
from .step.replay import random_state, replayed
from .trainer import SAMMixin, SAMSeq2SeqTrainer, SAMTrainer

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
