"""Draw the reference image of `storyboards/toy.yaml`: a story's first picture.

Run `python toy/anchor.py`; it needs Pillow and numpy. The same version of numpy draws the same pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from world import Story

if TYPE_CHECKING:
    from world import Film

ANCHOR = Path(__file__).parents[1] / "storyboards/images/toy.png"
SEED = 12
"""An orange cat under a blue sky. No seed of training or evaluation."""


def draw() -> Film:
    """The picture, [64, 64, 3]."""
    picture: Film = Story.begin(np.random.default_rng(SEED)).picture()[0]
    return picture


if __name__ == "__main__":
    Image.fromarray(draw()).save(ANCHOR, optimize=True)
