"""Which room may import which: the arrows run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "hf_sam"
TORCH = {"torch", "numpy"}
TRAINER = {*TORCH, "accelerate", "safetensors", "tqdm", "transformers"}
# Each room, and what it may import beside the standard library and itself.
ROOMS = {
    "ascent": TORCH,
    "config": {*TRAINER, "ascent"},
    "backends": {*TRAINER, "ascent", "config"},
    "step": {*TRAINER, "ascent", "config", "backends"},
    "reporting": {*TRAINER, "ascent", "config", "huggingface_hub", "jinja2", "scipy", "yaml"},
}
