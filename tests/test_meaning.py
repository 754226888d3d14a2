"""What the engine's parts mean: the real engine renders the toy checkpoint (toy/), and pixels are judged.

Nothing that happens in the toy's world is left to chance, so all of a film can be drawn from its board. A
wrong part of the engine shows in what the creature does, who it is, where it is, or how far the frames are
from the drawn ones.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

sys.path.append(str(Path(__file__).parents[1] / "toy"))

import av
import evaluate
import numpy as np
import pytest
import svi_support  # noqa: F401 - one thread, and no hub
import yaml
from data import PRO_OVERLAP
from export import MODELS
from PIL import Image
from typer.testing import CliRunner
from world import Look, Story, obeys, prompt, recognise

from svi_story.cache.store import Store
from svi_story.cli.app import app
from svi_story.engines.svi import conditioning

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from world import Film

    from svi_story.engines.base import Carry, Frame
    from svi_story.plan.model import Segment

Variant = Literal["2.0", "2.0-pro"]
VARIANTS: tuple[Variant, ...] = ("2.0", "2.0-pro")
OVERLAP = {"2.0": 1, "2.0-pro": PRO_OVERLAP}
ROOM = 2
"""How many frames early or late are looked for."""
SEAMS = {
    "2.0": [[45.8, 37.1], [35.6, 32.7], [45.5, 37.0]],
    "2.0-pro": [[44.1, 29.9], [28.8, 22.9], [44.5, 29.2]],
}
"""By chain and join, the PSNR of the frames that are there twice, dB."""
NEAR = {
    "2.0": [[29.3, 29.8, 27.4], [29.2, 26.2, 23.8], [30.5, 29.6, 27.5]],
    "2.0-pro": [[29.1, 30.9, 26.0], [28.3, 24.2, 21.1], [30.9, 30.9, 26.6]],
}
"""By chain and clip, the PSNR of the checkpoint's frames beside the drawn ones, dB."""


@dataclass(frozen=True)
class Tale:
    """A board: a creature in a place, and what happens to it, clip by clip."""

    variant: Variant
    seed: int | tuple[int, ...]
    actions: tuple[str, ...]
    look: Look | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    negative: str = "blurry"

    def begin(self) -> Story:
        """The story as the anchor shows it."""
        return Story.begin(np.random.default_rng(self.seed), self.look)

    def overlap(self, clip: int) -> int:
        """How many frames a clip repeats; one of the anchor's or of the clip before it."""
        return OVERLAP[self.variant] if clip else 1

    def drawn(self) -> list[Film]:
        """Every clip as it should be."""
        story = self.begin()
        return [story.clip(action, self.overlap(clip)) for clip, action in enumerate(self.actions)]

    def write(self, name: str) -> None:
        """Its board and its anchor."""
        Image.fromarray(self.begin().picture()[0]).save(f"{name}.png")
        rng = np.random.default_rng([*np.atleast_1d(self.seed), 1])
        board = {
            "version": 1,
            "reference": f"{name}.png",
            "resolution": "64x64",
            "negative_prompt": self.negative,
            "seed": int(rng.integers(2**31)),
            "engine": {"variant": self.variant, "steps": 8, "guidance": 1, "max_frames": 17, **self.engine},
            "clips": [{"prompt": prompt(action, rng)} for action in self.actions],
            "cut": {"crf": 4},
        }
        Path(f"{name}.yaml").write_text(yaml.safe_dump(board), "utf-8")


@dataclass(frozen=True)
class Shown:
    """What became of a board."""

    tale: Tale
    clips: list[Film]
    """As the cache has them, with the frames that they repeat."""
    film: Film

    def obeyed(self) -> list[bool]:
        """By clip."""
        place = self.tale.begin().place
        acts = zip(self.tale.actions, self.clips, strict=True)
        return [obeys(action, clip, place, self.tale.overlap(at)) for at, (action, clip) in enumerate(acts)]

    def who(self, clip: int = -1) -> tuple[Look, bool] | None:
        """Who is there at the end of a clip, and whether with a hat."""
        return recognise(self.clips[clip][-1], self.tale.begin().place)

    def psnr(self) -> list[float]:
        """By clip, how near its new frames are to the drawn ones, dB."""
        found = []
        for at, (clip, drawn) in enumerate(zip(self.clips, self.tale.drawn(), strict=True)):
            new = slice(self.tale.overlap(at), None)
            found.append(psnr(clip[new], drawn[new]))
        return found

    def seam(self, clip: int) -> float:
        """How near the frames that a clip repeats are to those of the clip before it, dB."""
        count = self.tale.overlap(clip)
        return psnr(self.clips[clip][:count], self.clips[clip - 1][-count:])

    def lags(self) -> list[int]:
        """By clip, how many frames the film shows it too late (negative: too early)."""
        drawn = self.tale.drawn()
        wanted = np.concatenate([clip[self.tale.overlap(at) if at else 0 :] for at, clip in enumerate(drawn)])
        lags, start = [], 0
        for at, clip in enumerate(drawn):
            stop = start + len(clip) - (self.tale.overlap(at) if at else 0)
            first, last = max(start, ROOM), min(stop, len(wanted) - ROOM)
            errors = {
                lag: mse(self.film[first + lag : last + lag], wanted[first:last])
                for lag in range(-ROOM, ROOM + 1)
            }
            lags.append(min(errors, key=errors.__getitem__))
            start = stop
        return lags


def mse(one: Film, other: Film) -> float:
    """Of two films of equal length, of values from 0 to 1."""
    return float(((one / 255.0 - other / 255.0) ** 2).mean())


def psnr(one: Film, other: Film) -> float:
    """Of two films of equal length, dB."""
    return float(-10 * np.log10(max(mse(one, other), 1e-9)))


def render(tales: Sequence[Tale], folder: Path) -> list[Shown]:
    """Render boards with one command, in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        folder.mkdir(exist_ok=True)
        patch.chdir(folder)
        patch.setenv("HOME", str(folder / "home"))
        names = [f"tale-{at}" for at in range(len(tales))]
        for tale, name in zip(tales, names, strict=True):
            tale.write(name)
        words = [*(f"{name}.yaml" for name in names), "--models", str(MODELS), "--dtype", "float32"]
        ended = CliRunner().invoke(app, ["render", *words])
        assert ended.exit_code == 0, ended.stderr
        planned = json.loads(CliRunner().invoke(app, ["plan", *words, "--json"]).stdout)["boards"]
        store = Store(Path("renders/.cache"), print)
        shown = []
        for tale, name, plan in zip(tales, names, planned, strict=True):
            clips = []
            for clip in plan["clips"]:
                entry = store.entry(clip["segments"][0]["key"])
                assert entry is not None
                with entry.frames() as frames:
                    clips.append(np.stack([frames[at] for at in range(len(frames))]))
            with av.open(f"renders/{name}.mp4") as container:
                pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            film = np.stack(pictures).astype(np.uint8)
            shown.append(Shown(tale, clips, film))
        return shown


@contextmanager
def anchor_lost(tales: Sequence[Tale], first: int) -> Iterator[None]:
    """From the clip `first` on the anchor shows the empty place: nothing tells who was there."""
    empty = {f"tale-{at}": tale.begin().empty()[0] for at, tale in enumerate(tales)}
    condition = conditioning.condition

    def without(segment: Segment, carry: Carry | None, picture: Frame, encode: conditioning.Encode) -> Tensor:
        if int(segment.clip.removeprefix("clip-")) > first:
            picture = empty[segment.anchor.path.stem]
        return condition(segment, carry, picture, encode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditioning, "condition", without)
        yield


def tales(variant: Variant) -> list[Tale]:
    """A creature that leaves and comes back, and one that stays and gets a hat. The first once more in three
    steps: the second of them is near the boundary, so the expert that takes it shows.
    """
    returns = Tale(variant, 1, ("leave right", "return left", "walk right"), Look(5, 1))
    return [
        returns,
        Tale(variant, 2, ("hat", "walk right", "duck"), Look(3, 0)),
        replace(returns, engine={"steps": 3}),
    ]


@pytest.fixture(scope="module", params=VARIANTS)
def chains(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    """What a variant makes of both."""
    return render(tales(request.param), tmp_path_factory.mktemp("chains"))


def test_every_clip_shows_what_its_prompt_says(chains: list[Shown]) -> None:
    obeyed = [fine for shown in chains for fine in shown.obeyed()]
    assert sum(obeyed) >= len(obeyed) - 1, obeyed


def test_who_comes_back_is_who_left(chains: list[Shown]) -> None:
    for clip in (1, 2):
        who = chains[0].who(clip)
        assert who is not None
        assert who[0].colour == chains[0].tale.begin().look.colour


def test_a_hat_that_is_on_no_anchor_stays_on(chains: list[Shown]) -> None:
    for clip in range(3):
        who = chains[1].who(clip)
        assert who is not None
        assert who[1]


def test_a_clip_begins_where_the_one_before_it_ends(chains: list[Shown]) -> None:
    seams = [[shown.seam(clip) for clip in (1, 2)] for shown in chains]
    assert np.subtract(seams, SEAMS[chains[0].tale.variant]).min() > -1, seams


def test_no_frame_comes_too_early_or_too_late(chains: list[Shown]) -> None:
    """The creature that leaves and returns moves four pixels a frame."""
    for shown in chains:
        assert len(shown.film) == 17 + 2 * (17 - shown.tale.overlap(1))
    assert chains[0].lags()[:2] == [0, 0]


def test_frames_are_those_that_were_to_be_drawn(chains: list[Shown]) -> None:
    """As near as the checkpoint comes: also nearer ones were not made by its experts with their boundary."""
    found = [shown.psnr() for shown in chains]
    assert np.abs(np.subtract(found, NEAR[chains[0].tale.variant])).max() < 0.3, found


def test_guidance_chooses_between_the_prompts(tmp_path: Path) -> None:
    """With a scale of 0 the negative prompt alone steers. The toy's low-noise expert decides what happens,
    unless the boundary leaves it too little to do.
    """
    first, second = {"high": 0, "low": 1}, {"high": 1, "low": 0}
    settings: tuple[dict[str, Any], ...] = (
        {"guidance": 0},
        {"guidance": first},
        {"guidance": second},
        {"guidance": first, "boundary": 0.5},
    )
    negative = "It leaves the picture to the left."
    told = [Tale("2.0-pro", 4, ("jump",), engine=each, negative=negative) for each in settings]
    shown = render(told, tmp_path / "guided")
    place = told[0].begin().place
    assert [obeys("leave left", each.clips[0], place) for each in shown] == [True, False, True, False]
    assert [each.obeyed()[0] for each in shown] == [False, True, False, False]


@pytest.mark.slow  # the tests above are its short form
@pytest.mark.parametrize("variant", VARIANTS)
def test_stories_of_today(variant: Variant, tmp_path: Path) -> None:
    """64 that nobody has seen before."""
    today = int(datetime.now(UTC).strftime("%Y%m%d"))
    stories = []
    for at in range(64):
        plan = evaluate.away_and_back(np.random.default_rng([today, at, 1]))
        stories.append(Tale(variant, (today, at), tuple(plan)))
    shown = render(stories, tmp_path / "stories")
    obeyed = [fine for each in shown for fine in each.obeyed()]
    known = [each.who(3) for each in shown]
    colours = [
        who[0].colour == each.tale.begin().look.colour for who, each in zip(known, shown, strict=True) if who
    ]
    assert np.mean(obeyed) >= 0.95, today
    assert np.mean(colours) >= 0.7, today


@pytest.mark.slow  # the tests above are its short form
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_its_anchor_a_creature_is_forgotten(variant: Variant, tmp_path: Path) -> None:
    """As many as let chance decide little: one colour of eight is right."""
    today = int(datetime.now(UTC).strftime("%Y%m%d"))
    stories = [Tale(variant, (today, at), ("leave left", "return right")) for at in range(128)]
    with anchor_lost(stories, 1):
        shown = render(stories, tmp_path / "stories")
    known = [each.who() for each in shown]
    colours = [
        who[0].colour == each.tale.begin().look.colour for who, each in zip(known, shown, strict=True) if who
    ]
    assert len(colours) > 100, today
    assert np.mean(colours) <= 0.2, today
