"""Films for the review: camera moves over a drawn picture, and the same with one fault put in on purpose."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from svi_story.cache.store import Store
from svi_story.engines.animatic import AnimaticIdentity
from svi_story.enginespec import EngineOptions
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import with_keys
from svi_story.render.jobs import Job, find_places, resolve
from svi_story.review.film import review_film

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from svi_story.plan.model import Segment
    from svi_story.review.results import FilmReview

    Frame = NDArray[np.uint8]

CACHE, FILMS = Path("renders/.cache"), Path("renders")
CLIP = 29
"""Frames of a clip on the test board; all but the first of a chain contribute one less."""


@cache
def scene(seed: int = 7) -> Frame:
    """A picture of 1200 x 600 with soft areas, edges and fine detail."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((600, 1200, 3), np.float32)
    for cells, strength in ((5, 90), (24, 45), (110, 30)):
        patches = rng.uniform(-1, 1, (cells, cells * 2, 3)).astype(np.float32)
        picture += strength * cv2.resize(patches, (1200, 600), interpolation=cv2.INTER_CUBIC)
    picture += np.array([120, 105, 90], np.float32)
    for _ in range(60):
        x, y, radius = rng.integers(0, 1200), rng.integers(0, 600), rng.integers(6, 40)
        colour = [int(each) for each in rng.integers(20, 235, 3)]
        cv2.circle(picture, (int(x), int(y)), int(radius), colour, -1, cv2.LINE_AA)
    return np.clip(picture, 0, 255).astype(np.uint8)


def view(picture: Frame, x: float, zoom: float, size: tuple[int, int]) -> Frame:
    """What a camera centred at share x of the picture's width sees."""
    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height) * zoom
    move = np.array(
        [[scale, 0, size[0] / 2 - x * width * scale], [0, scale, size[1] / 2 - height / 2 * scale]]
    )
    seen = cv2.warpAffine(picture, move, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(seen, np.uint8)


def grain(frames: Iterable[Frame], amount: float = 1.0) -> list[Frame]:
    """The same frames as a camera would see them."""
    rng = np.random.default_rng(1)
    return [np.clip(each + rng.normal(0, amount, each.shape), 0, 255).astype(np.uint8) for each in frames]


@cache
def _pan(frames: int, size: tuple[int, int], speed: float, start: float) -> tuple[Frame, ...]:
    picture = scene()
    return tuple(grain(view(picture, start + speed * place / 1.5, 1.5, size) for place in range(frames)))


def pan(
    frames: int, size: tuple[int, int] = (160, 96), speed: float = 0.004, start: float = 0.5
) -> list[Frame]:
    """A camera that moves by `speed` widths a frame, from the middle of the picture."""
    return list(_pan(frames, size, speed, start))


def zoom(frames: int, size: tuple[int, int] = (160, 96), by: float = 1.33) -> list[Frame]:
    """A camera that goes in, by a third."""
    picture = scene()
    return grain(view(picture, 0.5, 1.5 * by ** (place / frames), size) for place in range(frames))


def job_of(board: Path, engine: str = "svi") -> Job:
    """A board, planned and keyed; SVI needs no weights for it, as the animatic's keys do as well."""
    fingerprints = Fingerprints.load(CACHE / "memo.json", lambda _event: None)
    plans, rejected = resolve(find_places([board], {"engine": engine}), fingerprints)
    assert not rejected, rejected[0].error
    place, plan = plans[0]
    return Job(place, with_keys(plan, lambda _engine: AnimaticIdentity()), EngineOptions())


def scene_in(folder: Path, size: tuple[int, int] = (64, 64)) -> str:
    """Save the films' first view as a picture, to be a board's reference; returns its name."""
    Image.fromarray(view(scene(), 0.5, 1.5, size)).save(folder / "scene.png")
    return "scene.png"


def put(segment: Segment, frames: Sequence[Frame], latents: NDArray[np.float32] | None = None) -> None:
    """Publish an entry with these frames; those that repeat the parent's are made up."""
    overlap = segment.overlap
    made = [frames[0]] * overlap + list(frames)
    store = Store(CACHE, print)
    store.quarantine(segment.key, "another film takes its place")
    with store.work(segment.key) as work:
        work.save_latents({"pose": np.zeros(3, np.float32) if latents is None else latents})
        work.write_frames(iter(made), segment.fps, len(made))
        work.publish(
            segment.inputs, {"sampling_seconds": 12.5, "decoding_seconds": 1.5, "versions": {"a": "1"}}
        )


def plant(board: Path, film: Sequence[Frame], engine: str = "svi") -> Job:
    """Put a whole film into the cache, clip after clip; fades count for both of their clips."""
    job, place = job_of(board, engine), 0
    for segment in job.segments:
        put(segment, film[place : place + segment.contributes])
        place += segment.contributes
    return job


def reviewed(board: Path, film: Sequence[Frame]) -> FilmReview:
    """The review of a board whose cache holds this film."""
    return review(plant(board, film))


def review(job: Job) -> FilmReview:
    """The review of what is in the cache."""
    return review_film(job.plan, Store(CACHE, print).entry, lambda _event: None)


def faults(found: FilmReview) -> list[tuple[str, int, int]]:
    """Kind, clip and frame within the clip of every warning."""
    return [(each.kind, each.clip, each.within) for each in found.findings]


def hue(frame: Frame, degrees: float, saturation: float = 1.0) -> Frame:
    """Turned colours."""
    turned = cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    turned[..., 0] = (turned[..., 0] + degrees) % 360
    turned[..., 1] = np.clip(turned[..., 1] * saturation, 0, 1)
    return np.asarray((cv2.cvtColor(turned, cv2.COLOR_HSV2RGB) * 255).round(), np.uint8)


def soft(frame: Frame, sigma: float) -> Frame:
    """Out of focus."""
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8)


def at(
    place: int, change: Callable[[Frame], Frame], until: int | None = None
) -> Callable[[list[Frame]], list[Frame]]:
    """A fault in some frames of a film."""

    def planted(film: list[Frame]) -> list[Frame]:
        stop = place + 1 if until is None else until
        return [change(each) if place <= number < stop else each for number, each in enumerate(film)]

    return planted


def bright(frame: Frame, factor: float = 1.3) -> Frame:
    """Too much light."""
    return np.asarray(np.clip(frame * factor + 6, 0, 255), np.uint8)


def noise(frame: Frame) -> Frame:
    """Nothing but noise."""
    return np.random.default_rng(int(frame[0, 0, 0])).integers(0, 256, frame.shape, dtype=np.uint8)


def level(value: int) -> Callable[[Frame], Frame]:
    """One colour."""
    return lambda frame: np.full_like(frame, value)
