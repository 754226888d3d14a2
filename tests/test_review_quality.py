"""The review finds every fault that was put in on purpose, where it was put, and none in a clean film."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from review_films import (
    CACHE,
    CLIP,
    at,
    bright,
    faults,
    grain,
    hue,
    job_of,
    level,
    noise,
    pan,
    plant,
    put,
    review,
    reviewed,
    scene,
    scene_in,
    soft,
    view,
    zoom,
)

from svi_story.cache.store import Store
from svi_story.review.analysis import longest_run
from svi_story.review.measures import MeasureSeries, drift_from, measure_frames, sharpness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    Write = Callable[..., Path]
    Film = list[Frame]

FILM = 3 * CLIP - 2
FIRST, SECOND = CLIP, 2 * CLIP - 1
"""Where the second and the third clip start."""


@pytest.fixture
def board(write_board: Write, tmp_path: Path) -> Callable[..., Path]:
    """A board of three clips in one chain, whose anchor is the films' first view."""

    def write(**changes: Any) -> Path:
        size = changes.pop("size", (160, 96))
        fields = {
            "reference": scene_in(tmp_path, size),
            "resolution": f"{size[0]}x{size[1]}",
            "engine": {"max_frames": CLIP},
            "clips": [{"prompt": f"The camera is moving on, clip {n}."} for n in (1, 2, 3)],
        }
        return write_board(**{**fields, **changes})

    return write


def accelerated(frames: int) -> Film:
    places = np.cumsum(0.002 * 1.02 ** np.arange(frames))
    return grain(view(scene(), 0.4 + float(place) / 1.5, 1.5, (160, 96)) for place in places)


def small_mover(frames: int) -> Film:
    back, mover = view(scene(), 0.5, 1.5, (160, 96)), view(scene(3), 0.5, 3, (32, 28))
    film = []
    for place in range(frames):
        picture = back.copy()
        x = int(10 + place * 1.1)
        picture[60:88, x : x + 32] = mover
        film.append(picture)
    return grain(film)


def shaken(frames: int) -> Film:
    """A hand that shakes far and fast: every other frame looks like the one before the last."""
    places = np.arange(frames)
    return grain(
        view(scene(), 0.5 + float(x), 1.5, (160, 96))
        for x in 0.006 * np.sin(places * 1.7) + 0.004 * np.sin(places * 0.7)
    )


def turning_back(frames: int) -> Film:
    """A camera that goes back at one join, and forth again at the next."""
    film = pan(CLIP)
    return [*film, *film[-2::-1], *film[1:]][:frames]


def braking(frames: int) -> Film:
    """A camera that starts fast at every join, and slows down."""
    steps = [0.0] + [0.008 * 0.75 ** ((place - FIRST) % (CLIP - 1)) + 0.001 for place in range(1, frames)]
    return grain(view(scene(), 0.4 + float(x), 1.5, (160, 96)) for x in np.cumsum(steps))


def tiny_mover(frames: int) -> Film:
    back = view(scene(), 0.5, 1.5, (160, 96))
    film = []
    for place in range(frames):
        picture = back.copy()
        x = (10 + place * 2) % 140
        picture[50:60, x : x + 12] = (230, 40, 40)
        film.append(picture)
    return grain(film)


def darkening(frames: int) -> Film:
    return [bright(each, 1 - 0.4 * place / frames) for place, each in enumerate(pan(frames))]


CLEAN: dict[str, Callable[[int], Film]] = {
    "a pan": pan,
    "a slow pan": lambda frames: pan(frames, speed=0.0008),
    "a fast pan": lambda frames: pan(frames, speed=0.008, start=0.3),
    "a zoom": zoom,
    "an accelerating pan": accelerated,
    "a small thing that moves": small_mover,
    "a tiny thing that moves": tiny_mover,
    "a zoom into a half": lambda frames: zoom(frames, by=1.7),
    "a shaking hand": shaken,
    "a camera that turns back": turning_back,
    "a camera that starts fast at joins": braking,
    "light that fades": darkening,
}


@pytest.mark.parametrize("film", CLEAN.values(), ids=CLEAN)
def test_a_clean_film_has_no_warnings(
    board: Callable[..., Path], film: Callable[[int], Film], tmp_path: Path
) -> None:
    frames, path = film(FILM), board()
    Image.fromarray(frames[0]).save(tmp_path / "scene.png")
    assert faults(reviewed(path, frames)) == []


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (416, 240)], ids=str)
def test_a_clean_film_of_any_size_has_no_warnings(board: Callable[..., Path], size: tuple[int, int]) -> None:
    assert faults(reviewed(board(size=size), pan(FILM, size, 0.001))) == []


def swap(film: Film, place: int) -> Film:
    """Two neighbours in each other's place."""
    return [*film[:place], film[place + 1], film[place], *film[place + 2 :]]


def left_of(one: Frame, other: Frame) -> Frame:
    """The left half of one, the right half of another."""
    half = one.shape[1] // 2
    return np.concatenate([one[:, :half], other[:, half:]], axis=1)


def yellow(frame: Frame) -> Frame:
    """A warm cast."""
    return np.asarray(np.clip(frame + np.array([6, 2, -14]), 0, 255), np.uint8)


def growing(film: Film, change: Callable[[Frame, float], Frame]) -> Film:
    """A change that grows from nothing at the start to all of it at the end."""
    return [change(each, place / len(film)) for place, each in enumerate(film)]


FROZEN = slice(FIRST + 10, FIRST + 24)
FAULTS: dict[str, tuple[Callable[[Film], Film], tuple[str, int, int]]] = {
    "frozen half way": (
        lambda film: [*film[: FROZEN.start], *[film[FROZEN.start]] * 14, *film[FROZEN.start + 1 : -13]],
        ("frozen", 1, 10),
    ),
    "held, with grain": (
        lambda film: film[: FIRST + 10] + grain([film[FIRST + 10]] * 14) + film[FIRST + 11 : -13],
        ("static", 1, 10),
    ),
    "one black frame": (at(FIRST + 4, level(0)), ("black", 1, 4)),
    "black frames": (at(FIRST + 4, level(2), FIRST + 9), ("black", 1, 4)),
    "a grey frame": (at(5, level(128)), ("flat", 0, 5)),
    "one bright frame": (at(SECOND + 7, bright), ("flash", 2, 7)),
    "a little brighter": (at(SECOND + 7, lambda frame: bright(frame, 1.06)), ("flash", 2, 7)),
    "a bright first frame of a clip": (at(FIRST, bright), ("flash", 1, 0)),
    "a bright first frame": (at(0, bright), ("flash", 0, 0)),
    "a bright last frame": (at(FILM - 1, bright), ("flash", 2, CLIP - 2)),
    "one frame of noise": (at(8, noise), ("noise", 0, 8)),
    "noise over a clip": (
        lambda film: film[:SECOND] + grain(film[SECOND:], 24),
        ("noise", 2, 0),
    ),
    "a repeated frame at a join": (lambda film: [*film[:FIRST], *film[FIRST - 1 : -1]], ("duplicate", 1, 0)),
    "a repeated frame, decoded anew": (
        lambda film: [*film[:FIRST], *grain([film[FIRST - 1]], 2), *film[FIRST:-1]],
        ("duplicate", 1, 0),
    ),
    "a dropped frame at a join": (
        lambda film: [*film[:SECOND], *film[SECOND + 1 :], film[-1]][:FILM],
        ("jump", 2, 0),
    ),
    "a step of light at a join": (at(FIRST, lambda frame: bright(frame, 1.06), FILM), ("colour-step", 1, 0)),
    "hue that drifts": (
        lambda film: growing(film, lambda frame, share: hue(frame, 90 * share)),
        ("drift", 2, 0),
    ),
    "saturation every other frame": (
        lambda film: [hue(each, 0, 0.7) if place % 2 else each for place, each in enumerate(film)],
        ("flicker", 0, 0),
    ),
    "light every other frame": (
        lambda film: [bright(each, 0.93) if place % 2 else each for place, each in enumerate(film)],
        ("flicker", 0, 0),
    ),
    "blur that grows over the clips": (
        lambda film: [
            soft(each, place // CLIP) if place >= CLIP else each for place, each in enumerate(film)
        ],
        ("blur", 2, 0),
    ),
    "back to the reference": (
        lambda film: [*film[: FIRST + 20], *film[: FILM - FIRST - 20]],
        ("other-picture", 1, 20),
    ),
    "a soft first half of a clip": (at(FIRST, lambda frame: soft(frame, 1.5), FIRST + 14), ("blur", 1, 0)),
    "soft last frames": (at(FILM - 6, lambda frame: soft(frame, 1.5), FILM), ("blur", 2, CLIP - 7)),
    "softer than the anchor": (lambda film: [soft(each, 2) for each in film], ("blur", 0, 0)),
    "paler than the anchor": (lambda film: [hue(each, 0, 0.4) for each in film], ("anchor", 0, 0)),
    "brighter than the anchor": (lambda film: [bright(each, 1.35) for each in film], ("anchor", 0, 0)),
    "two frames swapped": (lambda film: swap(film, FIRST + 12), ("order", 1, 12)),
    "two frames swapped over a join": (lambda film: swap(film, SECOND - 1), ("order", 1, CLIP - 2)),
    "five frames frozen": (
        lambda film: [*film[: FIRST + 8], *[film[FIRST + 8]] * 5, *film[FIRST + 13 :]],
        ("frozen", 1, 8),
    ),
    "every frame twice": (
        lambda film: [film[place // 2 * 2] for place in range(len(film))],
        ("stutter", 1, 0),
    ),
    "the left half frozen": (
        lambda film: at(FIRST + 5, lambda frame: left_of(film[FIRST + 5], frame), FIRST + 20)(film),
        ("frozen", 1, 5),
    ),
    "a flash of two frames": (at(FIRST + 9, bright, FIRST + 11), ("flash", 1, 9)),
    "a flash of three frames over a join": (at(SECOND - 1, bright, SECOND + 2), ("flash", 1, CLIP - 2)),
    "colours that step inside a clip": (at(FIRST + 12, yellow, FILM), ("colour-step", 1, 12)),
    "grain that grows": (
        lambda film: [grain([each], 0.01 + 12 * place / FILM)[0] for place, each in enumerate(film)],
        ("grain", 2, 0),
    ),
    "more and more colour": (
        lambda film: growing(film, lambda frame, share: hue(frame, 0, 1 + share)),
        ("drift", 2, 0),
    ),
}


@pytest.mark.parametrize(("fault", "wanted"), FAULTS.values(), ids=FAULTS)
def test_every_planted_fault_is_found_where_it_is(
    board: Callable[..., Path], fault: Callable[[Film], Film], wanted: tuple[str, int, int]
) -> None:
    found = faults(reviewed(board(), fault(pan(FILM))))
    kind, clip, within = wanted
    assert any(each[:2] == (kind, clip) and abs(each[2] - within) <= 1 for each in found) or (
        kind in ("drift", "flicker", "blur", "stutter", "grain")
        and (kind, clip) in [each[:2] for each in found]
    ), found


@pytest.mark.parametrize("fps", [8, 24, 60])
def test_what_counts_in_frames_is_found_at_any_rate(board: Callable[..., Path], fps: int) -> None:
    film = pan(FILM)
    clips = [{"prompt": "It is moving on.", "frames": CLIP} for _ in range(3)]
    path = board(fps=fps, clips=clips)
    assert faults(reviewed(path, at(FIRST + 4, level(0))(film))) == [("black", 1, 4)]


def test_a_repeated_frame_is_the_only_thing_that_is_found(board: Callable[..., Path]) -> None:
    film = pan(FILM)
    found = reviewed(board(), [*film[:FIRST], *film[FIRST - 1 : -1]])
    assert faults(found) == [("duplicate", 1, 0)]
    assert found.findings[0].frame == FIRST
    assert found.findings[0].value < found.findings[0].threshold.value
    assert found.findings[0].remedies


def test_nan_and_inf_are_found_in_the_latents(board: Callable[..., Path]) -> None:
    film, job = pan(FILM), job_of(board())
    for number, segment in enumerate(job.segments):
        start = number and CLIP + (number - 1) * (CLIP - 1)
        spoilt = np.array([1, np.nan, np.inf], np.float32) if number == 1 else None
        put(segment, film[start : start + segment.contributes], spoilt)
    found = review(job)
    assert faults(found) == [("nan", 1, 0)]
    assert found.findings[0].value == 2


def test_cuts_fades_and_dips_are_no_joins(board: Callable[..., Path]) -> None:
    clips: list[dict[str, Any]] = [
        {"prompt": "One is moving.", "frames": CLIP},
        {"prompt": "Two is moving.", "frames": CLIP, "transition": "cut"},
        {"prompt": "Three is moving.", "frames": CLIP, "transition": {"fade": "0.4s"}},
        {"prompt": "Four is moving.", "frames": CLIP, "transition": {"dip": "0.4s"}},
    ]
    film = [*pan(CLIP), *zoom(CLIP), *pan(CLIP, speed=-0.004), *zoom(CLIP)]
    found = reviewed(board(clips=clips), film)
    assert faults(found) == []
    assert [join.kind for join in found.joins] == ["cut", "fade", "dip"]
    assert [clip.start for clip in found.clips] == [0, CLIP, 2 * CLIP - 6, 3 * CLIP - 6]


def test_a_title_card_moves_what_is_found_in_the_film(board: Callable[..., Path]) -> None:
    path = board(cut={"title_card": {"text": "Fog", "duration": "2s"}, "fps": 30})
    found = reviewed(path, at(FIRST + 4, level(0))(pan(FILM)))
    assert [(each.frame, each.within) for each in found.findings] == [(30 + FIRST + 4, 4)]


def test_a_long_clip_has_joins_inside(board: Callable[..., Path]) -> None:
    path = board(clips=[{"prompt": "It is moving on and on.", "duration": "3.8s"}])
    film = pan(2 * CLIP - 1)
    assert faults(reviewed(path, film)) == []
    found = reviewed(
        board(clips=[{"prompt": "Again.", "duration": "3.8s"}]),
        [*film[:CLIP], *film[CLIP - 1 : -1]],
    )
    assert faults(found) == [("duplicate", 0, CLIP)]
    assert found.findings[0].segment == 1


def test_a_half_rendered_film_is_reviewed_as_far_as_it_goes(board: Callable[..., Path]) -> None:
    film, job = pan(FILM), job_of(board())
    put(job.segments[0], at(3, level(0))(film)[:CLIP])
    found = review(job)
    assert faults(found) == [("black", 0, 3)]
    assert [clip.missing for clip in found.clips] == [0, 1, 1]
    assert [len(clip.pictures) for clip in found.clips] == [3, 0, 0]


def test_a_gap_in_a_chain_is_no_join(board: Callable[..., Path]) -> None:
    film, job = pan(FILM), job_of(board())
    put(job.segments[0], film[:CLIP])
    put(job.segments[2], film[SECOND:])
    found = review(job)
    assert faults(found) == []
    assert [join.seam for join in found.joins] == [None, None]


def test_a_black_anchor_may_have_black_frames(board: Callable[..., Path], tmp_path: Path) -> None:
    path = board()
    Image.new("RGB", (160, 96)).save(tmp_path / "scene.png")
    found = faults(reviewed(path, [level(0)(each) for each in pan(FILM)]))
    assert {kind for kind, _, _ in found} == {"frozen"}


def test_a_grey_anchor_does_not_excuse_black_frames(board: Callable[..., Path], tmp_path: Path) -> None:
    path = board()
    Image.new("RGB", (160, 96), (128, 128, 128)).save(tmp_path / "scene.png")
    film = [
        *grain([level(128)(each) for each in pan(FIRST)]),
        *grain([level(0)(each) for each in pan(FILM - FIRST)]),
    ]
    found = reviewed(path, film)
    assert {"black"} <= {kind for kind, clip, _ in faults(found) if clip}


def test_a_chain_after_a_gap_is_not_held_against_its_anchor(board: Callable[..., Path]) -> None:
    film, job = [hue(each, 0, 0.4) for each in pan(FILM)], job_of(board())
    put(job.segments[1], film[FIRST:SECOND])
    put(job.segments[2], film[SECOND:])
    assert "anchor" not in {kind for kind, _, _ in faults(review(job))}


def test_a_repeated_frame_is_found_in_an_animatic_too(
    board: Callable[..., Path], svi_story: Callable[..., Any]
) -> None:
    path = board()
    assert svi_story("render", path, "--engine", "animatic").code == 0
    job, store = job_of(path, "animatic"), Store(CACHE, print)
    assert faults(review(job)) == []
    entries = [store.entry(segment.key) for segment in job.segments]
    film: Film = []
    for segment, entry in zip(job.segments, entries, strict=True):
        assert entry is not None
        with entry.frames() as frames:
            film += list(frames)[segment.overlap :]
    planted = [*film[:FIRST], *film[FIRST - 1 : -1]]
    assert ("duplicate", 1, 0) in faults(review(plant(path, planted, "animatic")))


LONG = 7 * CLIP - 6
"""Frames of a film of seven clips: 24 seconds at 8 frames a second."""


def seven(words: str) -> dict[str, Any]:
    """Fields of a board of seven clips with these prompts."""
    clips = [{"prompt": words.format(n), "frames": CLIP} for n in range(7)]
    return {"fps": 8, "clips": clips}


def burnt(frames: int) -> Film:
    """A slow pan whose colours burn from the third clip on."""
    film = pan(frames, speed=0.0005)
    return [hue(each, 0, 1 + max(n / frames - 0.3, 0) * 2.5) for n, each in enumerate(film)]


def test_a_run_that_degrades_says_from_which_clip_on_and_what_helps(board: Callable[..., Path]) -> None:
    found = reviewed(board(**seven("The camera is moving on, part {}.")), burnt(LONG))
    degraded = next(each for each in found.findings if each.kind == "degradation")
    assert degraded.what == "colour"
    assert degraded.since is not None
    assert 0.3 * LONG / 8 <= degraded.since + 10 <= LONG / 8
    assert degraded.frame == round(degraded.since * 8)
    clip = found.clips[degraded.clip]
    assert clip.start <= degraded.frame < clip.start + clip.frames
    assert f"retake {clip.id}" in degraded.remedies[0]
    assert "transition: cut" in degraded.remedies[1]
    (run,) = found.runs
    assert (run.degradation.verdict, run.clips) == ("degraded", tuple(range(7)))
    assert run.first is not None
    assert run.worst is not None
    assert run.first.within < run.worst.within


def test_a_good_run_has_measures_and_no_warning(board: Callable[..., Path]) -> None:
    found = reviewed(board(**seven("The camera is moving on, part {}.")), pan(LONG, speed=0.0005))
    assert faults(found) == []
    (run,) = found.runs
    assert run.degradation.verdict == "not degraded"
    assert run.degradation.judged_share > 0.8
    assert max(each.drift for each in run.degradation.windows if np.isfinite(each.drift)) < 1


@pytest.mark.parametrize(
    ("prompts", "same_scene", "warned"),
    [
        (("A pan over a town, {}.", "A pan over a town, {}."), None, True),
        (("A pan over a town.", "Night falls on the harbour, in neon {}."), None, False),
        (("A pan over a town.", "Night falls on the harbour, in neon {}."), True, True),
        (("A pan over a town, {}.", "A pan over a town, {}."), False, False),
    ],
)
def test_other_colours_are_a_fault_only_where_the_scene_is_to_stay(
    board: Callable[..., Path], prompts: tuple[str, str], same_scene: bool | None, warned: bool
) -> None:
    clips = [{"prompt": prompts[n > 0].format(n)} for n in range(3)]
    film = growing(pan(FILM), lambda frame, share: hue(frame, 90 * share))
    found = reviewed(board(clips=clips, same_scene=same_scene), film)
    assert ("drift" in {each.kind for each in found.findings}) == warned


def test_a_soft_picture_of_something_else_is_no_blur(board: Callable[..., Path]) -> None:
    other = [soft(view(scene(9), 0.5 + 0.002 * n, 1.5, (160, 96)), 2) for n in range(FILM - FIRST)]
    found = reviewed(board(), [*pan(FIRST), *other])
    assert "blur" not in {each.kind for each in found.findings}


def test_what_hardly_moved_is_not_frozen(board: Callable[..., Path]) -> None:
    """An encoder, or a still subject, leaves parts of the picture as they were."""
    film = [view(scene(), 0.5 + 0.0001 * n, 1.5, (160, 96)) for n in range(FILM)]
    held = [left_of(film[n // 12 * 12], each) for n, each in enumerate(film)]
    assert "frozen" not in {each.kind for each in reviewed(board(), held).findings}


@settings(max_examples=8)
@given(st.integers(1, 11))
def test_a_film_measured_in_parts_gives_the_same_numbers(cut: int) -> None:
    film = pan(12, (64, 48), 0.01)
    whole = [measure for measure, _ in measure_frames(film)]
    first = list(measure_frames(film[:cut]))
    rest = list(measure_frames(film[cut:], tuple(look for _, look in first[-2:])))
    parts = [measure for measure, _ in (*first, *rest)]
    one, other = MeasureSeries.of(whole), MeasureSeries.of(parts)
    for name in (
        "mean",
        "cov",
        "sharpness",
        "noise",
        "noise_floor",
        "motion",
        "flow",
        "residual",
        "colour_change",
        "change",
        "blocks",
        "change_over_two",
        "identical",
    ):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), 1e-5, 1e-5, err_msg=name)


def test_sharpness_is_the_blur_effect_of_scikit_image() -> None:
    ramp = np.add.outer(np.arange(48) * 3, np.arange(64) * 2)
    grey = ((ramp + 40 * np.sin(np.arange(64) / 2)) % 256).astype(np.uint8)
    assert 1 - sharpness(grey) == pytest.approx(EFFECT, abs=1e-6)
    assert sharpness(np.full((48, 64), 7, np.uint8)) == 0


EFFECT = 0.7620867483193654
"""skimage.measure.blur_effect of that picture (scikit-image 0.26)."""


def test_drift_is_the_distance_of_the_colours() -> None:
    measures = [measure for measure, _ in measure_frames(pan(3))]
    track = MeasureSeries.of(measures)
    same = drift_from(track, track.mean[0], track.cov[0])
    assert same.total[0] == pytest.approx(0, abs=1e-2)
    moved = drift_from(track, track.mean[0] + np.array([3, 0, 4], np.float32), track.cov[0])
    assert moved.mean[0] == pytest.approx(5, abs=1e-4)
    assert moved.total[0] == pytest.approx(5, abs=1e-2)
    wider = drift_from(track, track.mean[0], track.cov[0] * 4)
    assert wider.spread[0] == pytest.approx(float(np.sqrt(np.trace(track.cov[0]))), rel=1e-3)


@given(st.lists(st.booleans(), max_size=40))
def test_the_longest_run_is_the_longest(flags: list[bool]) -> None:
    start, length = longest_run(np.array(flags, bool))
    text = "".join("x" if flag else " " for flag in flags)
    assert length == max(map(len, text.split()), default=0)
    assert all(flags[start : start + length])


def test_the_same_film_gives_the_same_review(board: Callable[..., Path]) -> None:
    job = plant(board(), pan(FILM))
    one, two = review(job), review(job)
    assert one.clips[0].run is not None
    assert two.clips[0].run is not None
    np.testing.assert_allclose(one.clips[0].run.series.motion, two.clips[0].run.series.motion, 1e-5)
    assert faults(one) == faults(two)
