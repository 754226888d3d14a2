"""Every number that decides about a warning, with the reason for it.

Calibrated on pans, zooms, shaken and accelerating camera moves and a small moving subject over four pictures
(photographs and drawings, 832x480 and 160x96, grain of one level), on animatics, and on the same films with
one defect each added on purpose. Those for degradation and re-timing: on fifteen published films of four
methods (docs/review.md).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Threshold:
    """Where a warning starts."""

    title: str
    """What the warning is called on the page."""
    value: float
    unit: str
    why: str


TABLE = {
    "colour": Threshold(
        "Degrades: colours",
        2.3,
        "CIELAB",
        "just noticeable, in what stayed for 10 or 20 s, other light apart; good films reach 1.5, others 9",
    ),
    "softening": Threshold(
        "Degrades: detail is lost",
        0.3,
        "of the detail",
        "lost in 10 s by what stayed; good films lose 0.2, mostly to their encoder",
    ),
    "melting": Threshold(
        "Degrades: nothing is sharp",
        0.5,
        "of the edges",
        "lost for 15 s since the start, while edges get wider; a good film lost 0.3",
    ),
    "nan": Threshold(
        "NaN or Inf in the latents",
        0,
        "numbers",
        "the VAE spreads a single one over the frames",
    ),
    "black": Threshold(
        "Black frames",
        4.0,
        "L*",
        "below it, mean and spread, a frame shows nothing; night scenes have lights",
    ),
    "flat": Threshold(
        "Frames of one colour",
        3.0,
        "CIELAB",
        "total spread of a picture without content; plain skies have more than 6",
    ),
    "noise": Threshold(
        "Noise",
        6.0,
        "levels",
        "above 1.5 times the anchor's grain: twice what a grainy scan has",
    ),
    "static": Threshold(
        "A still clip",
        0.3,
        "of the clip",
        "nothing moves anywhere; eased moves rest for a tenth at either end",
    ),
    "frozen": Threshold(
        "The picture freezes",
        5,
        "frames",
        "identical, or identical in part, bit for bit; an animatic may rest for half a second",
    ),
    "stutter": Threshold(
        "Frames are repeated throughout",
        0.25,
        "of the clip",
        "frames identical to the one before, bit for bit; a model renders none",
    ),
    "order": Threshold(
        "Two frames are swapped",
        1,
        "frames",
        "one step backwards within steady motion: two neighbours are swapped",
    ),
    "flash": Threshold(
        "Frames that do not belong",
        2.0,
        "CIELAB",
        "distance of up to three frames from both sides, which agree; motion stays below 0.5",
    ),
    "flicker": Threshold(
        "Flicker",
        0.8,
        "CIELAB",
        "colours that alternate from frame to frame; a pulsing lamp reaches 0.6",
    ),
    "drift": Threshold(
        "Colours drift from the anchor",
        9.0,
        "CIELAB from the anchor",
        "8 of them in what stays in the picture, light apart",
    ),
    "anchor": Threshold(
        "The chain does not start with its anchor",
        6.0,
        "CIELAB from the anchor",
        "a chain's first frame is its anchor; a fast move costs 1",
    ),
    "blur": Threshold(
        "The picture is soft",
        0.1,
        "of sharpness",
        "lost since the chain's start: a blur of one pixel costs 0.11 to 0.15, a zoom 0.05",
    ),
    "grain": Threshold(
        "The picture gets grainier",
        2.5,
        "levels",
        "more in the quietest blocks than at the chain's start; camera moves reach 1",
    ),
    "jump": Threshold(
        "The motion jumps at a join",
        1.65,
        "times the motion around",
        "one missing frame gives 1.7 to 2; a shaking camera stays below 1.5",
    ),
    "colour-step": Threshold(
        "Colours change abruptly",
        2.2,
        "CIELAB",
        "a step of the whole picture's colours that motion does not explain",
    ),
    "other-picture": Threshold(
        "The picture jumps elsewhere",
        0.6,
        "of the picture",
        "share of blocks that suddenly show something else",
    ),
    "duplicate": Threshold(
        "A frame is repeated at a join",
        0.3,
        "times the motion around",
        "a repeated frame gives 0 to 0.25, also when it was decoded again",
    ),
}
"""By the kind of the warning."""

BLACK, FLAT, NOISE = TABLE["black"].value, TABLE["flat"].value, TABLE["noise"].value

ACTIVE = 0.3
"""Thousandths of the width: blocks that move less count as still; grain alone gives 0.05 to 0.1."""
ACTIVE_SHARE = 0.05
"""Of a picture's blocks: when fewer move, nobody could see a join stop or jump."""
CONTEXT_FRAMES = 5
"""Frames on each side of a join or step that say what is usual there."""
FAST_MOTION = 15.0
"""Thousandths of the width per frame: what moves faster is blurred by its motion."""

UNRELATED = 3.0
"""Times the usual change, and UNRELATED_LEVELS on top: how a block changes between different pictures."""
UNRELATED_LEVELS = 8.0
JUMP_RATIO = 5.0
"""Times the motion around, and JUMP_DISTANCE on top: a step inside a clip to elsewhere in the picture."""
JUMP_DISTANCE = 15.0
"""Thousandths of the width."""

START_FRAMES = 8
"""Frames at a chain's start that its later ones are compared with."""
BLUR_FRAMES = 5
"""Consecutive frames that must be blurred."""

FROZEN_SHARE = 0.05
"""Of a picture's blocks: what counts as a part of it."""
ORDER_CONTEXT = 6
"""Steps on each side that say how the picture moves where two frames may be swapped."""

FLASH_FRAMES = 3
"""A flash lasts at most so many frames."""
FLASH_LEVELS = 4.0
"""Levels of 255 by which a single frame differs from both neighbours, motion compensated."""
SAME_DIRECTION = 0.6
"""How much the blocks' steps of colour have in common: below 0.3 in motion, above 0.7 in changes of light."""
FLICKER_FRAMES = 16
"""Frames in which flicker is measured."""
FLICKER_SHARE = 0.15
"""Of a clip's frames: more flashes than that are flicker."""

DRIFT_FROM_START = 8.0
"""CIELAB: a drifting clip that is nearer than this to its chain's own start did not get there by drifting."""
DRIFT_OF_COLOUR = 8.0
"""CIELAB by which what stays in the picture changed, light apart; camera moves reach 3."""
DRIFT_OF_LIGHT = 40.0
"""The same, light included: a sunset that halves the light reaches 36."""

COLOUR_DRIFT, SOFTENING = TABLE["colour"].value, TABLE["softening"].value
SOFTENED = 0.2
"""As `softening`, where frames look soft: below it they show something else, or move."""
MELTED_EDGES = 1 - TABLE["melting"].value
MELTED_SHARPNESS = 0.85
"""Of the sharpness of edges at the start: night and fog weaken edges, but leave them sharp."""
LEAST_JUDGED = 0.25
"""Of a film's windows: when fewer can be judged, nothing is said about the film."""

MOVING = 0.3
"""Levels of 255 by which a frame changes where something moves."""
REPEATED = 0.25
"""Of the usual change around: what an encoder makes of a repeated frame stays below it."""
RETIMED_WINDOWS, RETIMED_SHARE = 3, 0.05
"""Windows of 100 frames, which overlap by half, and their share, whose repeats follow the same pattern."""
CUT_LEVELS, CUT_TIMES, CUT_SIMILARITY = 12.0, 3.0, 0.6
"""A cut changes a frame by so many levels, so many times the change around, and to so little similarity."""
FROZEN_LEVELS, FROZEN_SECONDS, FROZEN_AROUND = 0.1, 0.5, 1.5
"""A picture freezes when it changes less for so long, while it moves by so many levels a frame on both sides:
encoders skip frames where little moves."""
FLASH_LEAST, FLASH_TIMES = 8.0, 4.0
"""Levels by which a single frame of a film differs from both neighbours, and times the usual change."""

ALIKE_PROMPTS = 0.6
"""Share of words that prompts have in common with the first one's, where they keep the scene."""
STOOD_STILL = 1.5
"""Levels by which blocks changed from frame to frame before they froze: an encoder freezes what rests."""
