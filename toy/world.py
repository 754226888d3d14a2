"""The toy's world: drawn films of one creature in one place, prompts for them, and a judge that reads frames.

A creature has a colour and a kind; the kinds differ in details (ears and belly). No prompt names either, so a
model can know them from the anchor alone. A hat is the opposite: never on an anchor, put on in the middle of
a story, and lost when the creature leaves. All pictures are [64, 64, 3].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    Film = NDArray[np.uint8]
    """Frames [frames, 64, 64, 3], RGB."""
    Plane = NDArray[np.float32]

SIZE = 64
"""Pixels in each direction."""
FRAMES = 17
"""Of a clip."""
GROUND = 54
"""The row of pixels that feet stand on."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 45),
    "orange": (245, 140, 30),
    "yellow": (235, 215, 40),
    "green": (35, 150, 60),
    "cyan": (40, 195, 205),
    "blue": (40, 80, 215),
    "purple": (130, 50, 185),
    "pink": (245, 120, 185),
}
PALETTE = np.array(list(COLOURS.values()), np.float32)
KINDS = ("cat", "bear")
"""Pointed ears and a round spot; round ears and a band."""
PLACES = np.array(  # sky, ground
    [
        [(170, 205, 235), (90, 130, 80)],
        [(235, 218, 175), (150, 115, 70)],
        [(190, 225, 188), (95, 95, 95)],
        [(226, 196, 222), (112, 78, 116)],
        [(216, 216, 216), (76, 106, 126)],
        [(150, 160, 190), (70, 70, 92)],
    ],
    np.float32,
)
TINT = np.array([10, 9, 7], np.float32)
"""How strong a texture is, in levels of red, green and blue."""
AWAY = 16
"""Pixels outside the picture where a creature is out of sight."""

PROMPTS: dict[str, tuple[str, ...]] = {
    "wait": ("{} stands and waits.", "{} does not move."),
    "jump": ("{} jumps up and down.", "{} jumps."),
    "duck": ("{} ducks and gets up again.", "{} ducks."),
    "walk left": ("{} walks to the left.", "{} takes a few steps to the left."),
    "walk right": ("{} walks to the right.", "{} takes a few steps to the right."),
    "hat": ("{} puts on a hat.", "A hat falls onto its head."),
    "leave left": ("{} leaves the picture to the left.", "{} goes away to the left."),
    "leave right": ("{} leaves the picture to the right.", "{} goes away to the right."),
    "empty": ("Nobody is here.", "The place stays empty."),
    "return left": ("{} comes back from the left.", "{} returns from the left."),
    "return right": ("{} comes back from the right.", "{} returns from the right."),
}
SUBJECTS = ("The creature", "It")
NEGATIVE = "blurry"
"""The negative prompt; in training it stands for no prompt."""

ROWS, COLUMNS = (plane.astype(np.float32) + 0.5 for plane in np.mgrid[:SIZE, :SIZE])


class Look(NamedTuple):
    """Who: indices of COLOURS and KINDS."""

    colour: int
    kind: int


class Place(NamedTuple):
    """Where: an index of PLACES, and the texture."""

    palette: int
    pattern: int
    """Stripes, waves or dots."""
    length: float
    """Of the texture's waves, pixels."""
    phase: float


class State(NamedTuple):
    """How things stand between two actions."""

    x: float | None
    """The creature's middle, pixels from the left; None: it is not there."""
    hat: bool = False


class Pose(NamedTuple):
    """What one frame shows."""

    x: float | None
    lift: float = 0
    """Pixels above the ground."""
    squash: float = 1
    """Height beside the usual one."""
    stride: float = 0
    """Which foot is in front, -1 to 1."""
    hat: float | None = None
    """Pixels above the head; None: there is no hat."""


def rest(state: State) -> Pose:
    """A frame in which nothing happens."""
    return Pose(state.x, hat=0.0 if state.hat else None)


def prompt(action: str, rng: Generator) -> str:
    """One way to say it, as a board would."""
    return str(rng.choice(PROMPTS[action])).format(rng.choice(SUBJECTS))


def all_prompts() -> list[str]:
    """Every prompt that there is, and the negative one."""
    texts = {text.format(subject) for ways in PROMPTS.values() for text in ways for subject in SUBJECTS}
    return sorted({*texts, NEGATIVE})


def possible(state: State) -> list[str]:
    """What can happen next."""
    if state.x is None:
        return ["empty", "return left", "return right"]
    found = ["wait", "jump", "duck", "leave left", "leave right"]
    found += ["walk left"] * (state.x > SIZE / 2 - 6) + ["walk right"] * (state.x < SIZE / 2 + 6)
    return found + ["hat"] * (not state.hat)


def perform(action: str, state: State, count: int) -> tuple[list[Pose], State]:
    """The next `count` frames, and how things stand then. Where there is a rest, it comes at the end."""
    poses = []
    start = state.x if state.x is not None else -AWAY if action == "return left" else SIZE + AWAY
    targets = {
        "walk left": start - 12,
        "walk right": start + 12,
        "leave left": -AWAY,
        "leave right": SIZE + AWAY,
        "return left": SIZE / 2,
        "return right": SIZE / 2,
    }
    for index in range(1, count + 1):
        t = index / count
        moved = min(1.0, t / (0.7 if action.startswith("leave") else 0.85))
        pose = rest(state)
        if action in targets:
            stride = float(np.sin(4 * np.pi * moved))
            pose = pose._replace(x=start + (targets[action] - start) * moved, stride=stride, lift=abs(stride))
        elif action == "wait":
            pose = pose._replace(squash=1 + 0.03 * float(np.sin(2 * np.pi * t)))
        elif action == "jump":
            lift = abs(float(np.sin(2 * np.pi * t)))
            pose = pose._replace(lift=10 * lift, squash=1 + 0.12 * lift)
        elif action == "duck":
            pose = pose._replace(squash=1 - 0.4 * float(np.sin(np.pi * t)))
        elif action == "hat":
            pose = pose._replace(hat=36 * (1 - moved))
        poses.append(pose)
    x = None if action.startswith("leave") else poses[-1].x
    return poses, State(x, hat=x is not None and (state.hat or action == "hat"))


@cache
def background(place: Place) -> Plane:
    """The empty place, [64, 64, 3] in levels. Not to be changed."""
    sky, ground = PLACES[place.palette]
    turn = 2 * np.pi / place.length
    down, across = np.sin(turn * ROWS + place.phase), np.sin(turn * COLUMNS + 2 * place.phase)
    slanted = np.sin(turn * (0.8 * COLUMNS + 0.6 * ROWS) + place.phase)
    texture = (down, slanted, down * across)[place.pattern][..., None] * TINT
    low = (ROWS >= GROUND - 3)[..., None]
    empty: Plane = np.where(low, ground + 0.6 * texture, sky + texture).astype(np.float32)
    return empty


def draw(place: Place, look: Look, poses: Sequence[Pose]) -> Plane:
    """Frames [frames, 64, 64, 3] in levels, not rounded."""
    frames = np.repeat(background(place)[None], len(poses), 0)
    seen = [at for at, pose in enumerate(poses) if pose.x is not None]
    if not seen:
        return frames

    def column(values: list[float]) -> Plane:
        return np.array(values, np.float32)[:, None, None]

    shown = [poses[at] for at in seen]
    squash = column([pose.squash for pose in shown])
    u = (COLUMNS - column([pose.x or 0.0 for pose in shown])) * np.sqrt(squash)
    v = (GROUND - column([pose.lift for pose in shown]) - ROWS) / squash  # height above the feet
    stride = column([pose.stride for pose in shown])
    hat = column([1e3 if pose.hat is None else pose.hat for pose in shown])

    body = _disc(u, v, 0, 11.5, 9.5)
    colour = PALETTE[look.colour]
    dark, light = colour * 0.45, colour * 0.35 + 255 * 0.65
    side = np.abs(u)
    if KINDS[look.kind] == "cat":
        outer, inner = (side - 6.5) * 0.9 - (28 - v) * 0.4, (6.5 - side) * 0.9 - (28 - v) * 0.3
        ears = np.maximum(np.maximum(outer, inner), 16 - v)
        belly = _disc(u, v, 0, 7.5, 4.5)
    else:
        ears = _disc(side, v, 7, 20, 4.2)
        belly = np.maximum(np.abs(v - 7.5) - 2.2, body)
    feet = np.minimum(
        _disc(u, v - stride.clip(min=0), -4.5 + 2 * stride, 1.5, 3),
        _disc(u, v + stride.clip(max=0), 4.5 - 2 * stride, 1.5, 3),
    )
    brim = np.maximum(np.abs(v - hat - 20) - 1.2, side - 8.5)
    crown = np.maximum(np.abs(v - hat - 24) - 4, side - 5)
    layers = [
        (feet, dark),
        (ears, colour),
        (body, colour),
        (belly, light),
        (_disc(side, v, 3.6, 14.5, 1.9), np.full(3, 255, np.float32)),
        (np.minimum(brim, crown), np.array([40, 40, 52], np.float32)),
    ]
    picture = frames[seen]
    for distance, paint in layers:
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        picture = picture * (1 - cover) + paint * cover
    frames[seen] = picture
    return frames


def _disc(u: Plane, v: Plane, x: Plane | float, y: Plane | float, radius: float) -> Plane:
    """The distance of every pixel from a circle, negative inside."""
    distance: Plane = np.hypot(u - x, v - y) - radius
    return distance


@dataclass
class Story:
    """One creature in one place, and what happened so far."""

    place: Place
    look: Look
    state: State
    poses: list[Pose] = field(default_factory=list)
    """Of the last clip."""

    @classmethod
    def begin(cls, rng: Generator, look: Look | None = None) -> Story:
        """At random: in sight and without a hat, as an anchor shows it."""
        length, phase = rng.uniform(10, 18), rng.uniform(0, 2 * np.pi)
        place = Place(int(rng.integers(len(PLACES))), int(rng.integers(3)), float(length), float(phase))
        look = look or Look(int(rng.integers(len(PALETTE))), int(rng.integers(len(KINDS))))
        return cls(place, look, State(float(rng.uniform(20, SIZE - 20))))

    def picture(self) -> Film:
        """The story as it stands now, a film of one frame: at its beginning, the anchor."""
        return self._shown([rest(self.state)])

    def empty(self) -> Film:
        """The place without anyone, a film of one frame."""
        return self._shown([Pose(None)])

    def clip(self, action: str, overlap: int = 1) -> Film:
        """The next clip, which repeats the last frames of the one before."""
        before = self.poses[-overlap:] or [rest(self.state)]
        poses, self.state = perform(action, self.state, FRAMES - len(before))
        self.poses = [*before, *poses]
        return self._shown(self.poses)

    def _shown(self, poses: list[Pose]) -> Film:
        return draw(self.place, self.look, poses).round().clip(0, 255).astype(np.uint8)


# --- the judge


class Seen(NamedTuple):
    """Where a creature is, in pixels; the area is 0 where none is."""

    area: int
    x: float = 0
    top: float = 0
    bottom: float = 0


def find(frame: Film, place: Place) -> Seen:
    """What differs from the empty place, with the hat."""
    mask = _foreground(frame, place)
    if mask.sum() < 25:
        return Seen(0)
    rows, columns = np.nonzero(mask)
    top, bottom = np.quantile(rows, 0.02), np.quantile(rows, 0.98)
    return Seen(int(mask.sum()), float(columns.mean()) + 0.5, float(top), float(bottom) + 1)


def recognise(frame: Film, place: Place) -> tuple[Look, bool] | None:
    """Who stands there, and whether with a hat: of all possible pictures the nearest. None: nobody."""
    seen = find(frame, place)
    if seen.area < 120:
        return None
    pixels = frame[_foreground(frame, place)].astype(np.float32)
    distance = ((pixels[:, None] - PALETTE) ** 2).sum(-1)
    near = distance.min(1) < 80**2  # neither the belly, nor the feet, nor the hat
    voting = distance[near] if near.any() else distance
    colour = int(np.bincount(voting.argmin(1), minlength=len(PALETTE)).argmax())
    best: tuple[float, Look, bool] = (np.inf, Look(0, 0), False)
    lift = max(0.0, GROUND - seen.bottom)
    for kind in range(len(KINDS)):
        for hat in (None, 0.0):
            poses = [Pose(seen.x + shift, lift, hat=hat) for shift in (-1, -0.5, 0, 0.5, 1)]
            drawn = draw(place, Look(colour, kind), poses)
            error = float(((drawn - frame) ** 2).mean((1, 2, 3)).min())
            best = min(best, (error, Look(colour, kind), hat is not None))
    return best[1], best[2]


def obeys(action: str, clip: Film, place: Place, overlap: int = 1) -> bool:
    """Whether a clip shows what was asked for. Its first `overlap` frames were there before."""
    seen = [find(frame, place) for frame in clip[overlap - 1 :]]
    first, last, there = seen[0], seen[-1], [one for one in seen[1:] if one.area]
    kind, _, side = action.partition(" ")
    if kind == "empty":
        return not there
    if kind == "leave":
        return bool(there) and not last.area and _is_at(there[-1], side)
    if kind == "return":
        return not first.area and last.area > 120 and _is_at(there[0], side)
    if not first.area or len(there) < len(seen) - 1:
        return False
    moved, lift = last.x - first.x, max(GROUND - one.bottom for one in there)
    sunk, still = [one.top - first.top for one in there], abs(moved) < 4
    known = recognise(clip[-1], place) if kind == "hat" else None
    return {
        "walk": (-moved if side == "left" else moved) > 7,
        "jump": still and lift > 5,
        "duck": still and max(sunk) > 4,
        "hat": still and known is not None and known[1],
        "wait": still and lift < 4 and max(map(abs, sunk)) < 3,
    }[kind]


def _is_at(seen: Seen, side: str) -> bool:
    return seen.x < 24 if side == "left" else seen.x > 40


def _foreground(frame: Film, place: Place) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = np.abs(frame - background(place)).sum(-1) > 70
    return mask
