"""The toy's demo: its board, its picture, what `doctor --smoke` measures of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "toy"))

import anchor as toy_anchor
import numpy as np
import world
from PIL import Image

from svi_story.render import smoke
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from svi_story.render.doctor import Check

ROOT = Path(__file__).parents[1]
BOARD = ROOT / "storyboards/toy.yaml"


def test_the_board_s_picture_is_the_world_s() -> None:
    with Image.open(BOARD.parent / load(BOARD).story.reference) as picture:
        assert (np.asarray(picture) == toy_anchor.draw()).all()


def test_the_board_says_what_the_toy_knows() -> None:
    story = load(BOARD).story
    assert "toy" in str(story.title).lower()
    texts = [clip.prompt for clip in story.clips]
    assert {*texts, story.negative_prompt} <= {*world.all_prompts()}
    returns = world.PROMPTS["return left"] + world.PROMPTS["return right"]
    assert texts[-1] in [way.format(who) for way in returns for who in world.SUBJECTS]


def film_of(*pictures: world.Film) -> smoke.RenderedClip:
    return smoke.RenderedClip({}, np.stack([*pictures] * 2))


def test_only_the_anchor_s_subject_counts_as_returned() -> None:
    story = world.Story.begin(np.random.default_rng(1))
    anchor, empty = story.picture()[0], story.empty()[0]
    moved = world.Story(story.place, story.look, world.State(world.SIZE - 20)).picture()[0]
    colour = world.Look((story.look.colour + 3) % len(world.COLOURS), story.look.kind)
    other = world.Story(story.place, colour, story.state).picture()[0]

    def check(away: world.Film, back: world.Film, blind: world.Film, *, judged: bool = True) -> Check:
        return smoke.check_return(anchor, *map(film_of, (away, back, blind)), judged=judged)

    right = check(empty, moved, empty)
    share = int(right.detail.split("%")[0])
    assert (right.state, share > 90) == ("ok", True), "wherever it stands"
    assert right.detail.startswith(f"{share}% of the colours that left are back, with an empty anchor 0%")
    assert "unknown" in right.detail
    for wrong in (check(empty, empty, empty), check(empty, other, empty), check(empty, moved, moved)):
        assert (wrong.state, "look at the pictures" in wrong.remedy) == ("warn", True), wrong
    assert "nothing has left it" in check(anchor, anchor, anchor).detail
    unjudged = check(empty, empty, empty, judged=False)
    assert (unjudged.state, smoke.NOT_JUDGED in unjudged.detail) == ("ok", True)
