"""Where things are in the clone that the tests belong to."""

from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parent.parent
CARDS = ROOT / "model_cards"
