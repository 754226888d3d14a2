"""Every number that decides over a warning, with the reason for it.

Calibrated on pans, zooms, shaken and accelerating camera moves and a small moving subject over four pictures
(photographs and drawings, 832x480 and 160x96, grain of one level), on animatics, and on the same films with
one fault each put in on purpose. A film by the model itself may need other numbers: they are all here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A threshold."""

    value: float
    unit: str
    why: str


NEAR = 5
"""Frames on each side of a join that say what is usual there."""
ACTIVE = 0.3
"""Thousandths of the width: blocks that move less are still; grain alone reads as 0.05 to 0.1."""
ACTIVE_SHARE = 0.05
"""Of a picture's blocks: where fewer move, nobody could see a join stop or jump."""
UNRELATED = 3.0
"""Times the usual change, and UNRELATED_LEVELS on top: what a block does between different pictures."""
UNRELATED_LEVELS = 8.0
START = 8
"""Frames at a chain's start that its later ones are compared with."""
WINDOW = 16
"""Frames that flicker is looked for in at a time."""

BLACK = Limit(4.0, "L*", "a frame below it, mean and spread, shows nothing; night scenes have lights")
FLAT = Limit(3.0, "CIELAB", "the total spread of a picture without content; plain skies have more than 6")
NOISE = Limit(6.0, "levels", "over 1.5 times the grain of the anchor: twice what a grainy scan has")
STATIC = Limit(0.3, "of the clip", "nothing moves, nowhere: eased moves rest for a tenth at either end")
FROZEN = Limit(5, "frames", "the very same, or part of them, bit for bit; an animatic may rest half a second")
STUTTER = Limit(0.25, "of the clip", "frames that are the one before, bit for bit; a model makes none")
ORDER = Limit(1, "frames", "one step back within a steady motion: two neighbours are swapped")
ODD = Limit(2.0, "CIELAB", "up to three frames' distance from both sides, which agree; motion: below 0.5")
ODD_LEVELS = 4.0
"""Levels of 255 by which a single frame differs from both neighbours once the motion is taken out."""
FLASH = 3
"""Frames that a flash lasts at most."""
AGREE = 0.6
"""How much of the blocks' steps of colour is one and the same: motion has less than 0.3, light above 0.7."""
FLICKER = Limit(0.8, "CIELAB", "colours that go to and fro from frame to frame; a pulsing lamp: 0.6")
DRIFT = Limit(9.0, "CIELAB from the anchor", "8 of them in what stays in the picture, light apart")
MOVED = 8.0
"""CIELAB: a clip over DRIFT that is nearer to the chain's own beginning has not come there on the way."""
TURNED = 8.0
"""CIELAB that colours of what stays in the picture changed, light apart; moves of the camera come to 3."""
DARKER = 40.0
"""The same with light: a sunset that halves it comes to 36."""
AWAY = Limit(6.0, "CIELAB from the anchor", "a chain's first frame is its anchor; a fast move costs 1")
GRAIN = Limit(2.5, "levels", "more in the quietest blocks than at the chain's start; moves come to 1")
SOFT_FRAMES = 5
"""Frames in a row that have to be soft."""
FAST = 15.0
"""Thousandths of the width a frame: what moves faster is soft because it moves."""
BLUR = Limit(
    0.1, "of sharpness", "lost since the chain's start: a blur of a pixel costs 0.11 to 0.15, a zoom 0.05"
)
STEP = Limit(
    1.65, "times the motion around", "one frame too few is 1.7 to 2; a shaking camera stays below 1.5"
)
REPEAT = Limit(0.3, "times the motion around", "a frame shown twice is 0 to 0.25, also when decoded anew")
POP = Limit(2.2, "CIELAB", "a step of the whole picture's colours that the motion does not explain")
OTHER = Limit(0.6, "of the picture", "the share of blocks that show something else all of a sudden")
LEAP = 5.0
"""Times the motion around, and LEAP_FAR on top: a step inside a clip that leads elsewhere in the picture."""
LEAP_FAR = 15.0
"""Thousandths of the width."""

TABLE: dict[str, Limit] = {
    "black": BLACK,
    "flat": FLAT,
    "noise": NOISE,
    "static": STATIC,
    "frozen": FROZEN,
    "stutter": STUTTER,
    "order": ORDER,
    "flash": ODD,
    "flicker": FLICKER,
    "drift": DRIFT,
    "anchor": AWAY,
    "blur": BLUR,
    "grain": GRAIN,
    "jump": STEP,
    "colour-step": POP,
    "other-picture": OTHER,
    "duplicate": REPEAT,
}
"""By the name of the fault it decides over."""
