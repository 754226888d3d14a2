"""Draw a reference image for a board: a story's first picture.

    python toy/anchor.py                                   # the one of storyboards/toy.yaml
    python toy/anchor.py --colour blue --kind bear -o me.png

The same seed and the same version of numpy draw the same pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from world import COLOURS, KINDS, Look, Story

if TYPE_CHECKING:
    from collections.abc import Sequence

ANCHOR = Path(__file__).parents[1] / "storyboards/images/toy.png"
SEED = 12
"""An orange cat under a blue sky. No seed of training or evaluation."""


def begin(seed: int = SEED, colour: str = "", kind: str = "") -> Story:
    """A story as its seed has it, but for the colour or kind that is given."""
    story = Story.begin(np.random.default_rng(seed))
    story.look = Look(
        list(COLOURS).index(colour) if colour else story.look.colour,
        KINDS.index(kind) if kind else story.look.kind,
    )
    return story


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the place, and of what is not given")
    parser.add_argument("--colour", choices=list(COLOURS), default="")
    parser.add_argument("--kind", choices=KINDS, default="")
    parser.add_argument("-o", "--output", type=Path, default=ANCHOR, help="the file to write")
    asked = parser.parse_args(words)
    picture = begin(asked.seed, asked.colour, asked.kind).picture()[0]
    Image.fromarray(picture).save(asked.output, optimize=True)


if __name__ == "__main__":
    main()
