"""The animatic's camera is calm and smooth, its slate readable, its frames pinned."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from svi_story.engines.animatic import Animatic, AnimaticIdentity
from svi_story.engines.animatic.camera import MAX_TRAVEL, PEAK_SPEED, Pose, first_pose, next_pose, path, view
from svi_story.engines.animatic.slate import MAX_BAND, MAX_ID_BAND, lay_out, timecode
from svi_story.engines.base import Carry
from svi_story.enginespec.sampling import Guidance, Sampler
from svi_story.errors import RenderError
from svi_story.media.images import fit_picture, open_picture, pixels_digest
from svi_story.plan.model import Anchor, Segment, Size

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
PROMPT = "A tabby cat sits by the window, its tail flicking; it turns its head to the rain."


class NoCheckpoint:
    def load(self) -> None:
        return None

    def save(self, state: object) -> None:
        raise AssertionError("an instant engine keeps no checkpoint")


def anchor(path: Path, width: int = 160, height: int = 96) -> Anchor:
    pixels = fit_picture(open_picture(path), width, height, "crop")
    return Anchor(path, Size(width, height), "crop", pixels_digest(pixels))


def segment(of: Anchor, **changes: Any) -> Segment:
    made = Segment(
        clip="window",
        index=0,
        prompt=PROMPT,
        negative_prompt="",
        seed=0,
        size=of.size,
        fps=Fraction(15),
        frames=21,
        overlap=0,
        first_frame=0,
        anchor=of,
        engine="animatic",
        options=Sampler("2.0", 50, Guidance(5.0, 5.0), 5.0, 0.875, 1),
    )
    return replace(made, **changes)


def sampled(of: Segment, carry: Carry | None = None) -> dict[str, NDArray[Any]]:
    return dict(Animatic().sample(of, carry, NoCheckpoint(), lambda _step, _steps: None))


def frames_of(of: Segment, carry: Carry | None = None) -> NDArray[np.uint8]:
    with Animatic() as engine:
        return np.stack(list(engine.decode(of, sampled(of, carry))))


# --- the camera


def inside(pose: Pose) -> bool:
    half = 0.5 / pose.zoom
    return half < pose.x < 1 - half and half < pose.y < 1 - half


@given(seed=st.integers(0, 2**63 - 1), durations=st.lists(st.floats(0.05, 60), min_size=1, max_size=40))
def test_no_chain_ever_shows_what_is_not_there(seed: int, durations: list[float]) -> None:
    pose = first_pose(random.Random(seed))
    for number, seconds in enumerate(durations):
        end = next_pose(pose, random.Random(seed + number), seconds)
        assert all(inside(between) for between in path(pose, end, 17, 0))
        pose = end


@given(seed=st.integers(0, 2**63 - 1), frames=st.integers(2, 81), fps=st.sampled_from([8, 15, 24, 60]))
def test_the_camera_is_gentle(seed: int, frames: int, fps: int) -> None:
    rng = random.Random(seed)
    start = first_pose(rng)
    poses = list(path(start, next_pose(start, rng, frames / fps), frames, 0))
    for one, next_one in pairwise(poses):
        most = 1.2 * PEAK_SPEED / fps * frames / (frames - 1)
        assert math.hypot(next_one.x - one.x, next_one.y - one.y) * one.zoom < most
        assert abs(math.log(next_one.zoom / one.zoom)) < most


def test_long_chains_keep_moving_and_stay_away_from_the_edge() -> None:
    pose = first_pose(random.Random(0))
    travels = []
    for seed in range(500):
        end = next_pose(pose, random.Random(seed), 5.4)
        travels.append(max(abs(end.x - pose.x), abs(end.y - pose.y), abs(end.zoom - pose.zoom)))
        pose = end
        assert abs(pose.x - 0.5) < 0.85 * (0.5 - 0.5 / pose.zoom)
        assert 1.08 <= pose.zoom <= 1.28
    assert min(travels) > 0.02
    assert max(travels) < MAX_TRAVEL * 1.28


def test_moves_are_pans_and_zooms() -> None:
    start = Pose(0.5, 0.5, 1.16)
    ends = [next_pose(start, random.Random(seed), 5.0) for seed in range(60)]
    pans, zooms_in = sum(end.zoom == 1.16 for end in ends), sum(end.zoom > 1.16 for end in ends)
    assert 10 < pans < 50
    assert zooms_in > 5
    assert 60 - pans - zooms_in > 2


def test_the_move_is_held_over_repeated_frames_then_eased() -> None:
    start, end = Pose(0.45, 0.5, 1.2), Pose(0.55, 0.5, 1.2)
    poses = [pose.x for pose in path(start, end, 81, 5)]
    assert poses[:5] == [0.45] * 5
    assert poses[-1] == pytest.approx(0.55)
    steps = np.diff(poses[4:])
    assert (steps > 0).all()
    assert steps[0] < 0.01 * steps.max()
    assert steps[-1] < 0.01 * steps.max()
    assert np.abs(np.diff(steps)).max() < 0.1 * steps.max(), "no jerk"
    assert [pose.x for pose in path(start, end, 1, 0)] == [0.45]


@pytest.mark.parametrize("end", [Pose(0.54, 0.5, 1.2), Pose(0.5, 0.5, 1.26)])
def test_motion_is_smooth_to_a_hundredth_of_a_pixel(end: Pose) -> None:
    period, width = 64, 832
    centres = np.arange(width) + 0.5
    wave = np.rint(127.5 + 100 * np.sin(2 * np.pi * centres / period)).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(wave[None, :, None], (48, width, 3)).copy())
    seen, meant = [], []
    for pose in path(Pose(0.5, 0.5, 1.2), end, 81, 0):
        row = np.asarray(view(image, pose)).mean(axis=(0, 2))
        turn = 2 * np.pi / period / pose.zoom * centres
        basis = np.stack([np.sin(turn), np.cos(turn), np.ones(width)], axis=1)
        sine, cosine, _ = np.linalg.lstsq(basis, row, rcond=None)[0]
        seen.append(np.arctan2(cosine, sine) * period / 2 / np.pi)
        meant.append((pose.x - 0.5 / pose.zoom) * width)
    seen_left = np.unwrap(np.array(seen), period=period)
    assert np.ptp(meant) > 10
    np.testing.assert_allclose(seen_left - seen_left[0], np.array(meant) - meant[0], atol=0.01)


def test_a_chain_continues_where_its_parent_stopped(picture: Path) -> None:
    of = anchor(picture)
    parent = segment(of)
    latents = sampled(parent)
    frames = frames_of(parent)
    assert {name: array.dtype for name, array in latents.items()} == {"start": np.float64, "pose": np.float64}
    child = segment(of, seed=1, overlap=5, first_frame=-5)
    carry = Carry("animatic", latents, list(frames[-1:]))
    np.testing.assert_array_equal(sampled(child, carry)["start"], latents["pose"])
    later = frames_of(child, carry)
    below = slice(60, None)  # the slate tells the frames apart
    for frame in range(5):
        np.testing.assert_array_equal(later[frame, below], frames[-1, below])
    step = np.abs(later[5, below].astype(int) - frames[-1, below]).mean()
    largest = max(np.abs(b[below].astype(int) - a[below]).mean() for a, b in pairwise(later))
    assert step < 0.2 * largest, "the first new frame starts from rest"


def test_a_chain_start_ignores_what_came_before(picture: Path) -> None:
    of = anchor(picture)
    assert not np.array_equal(sampled(segment(of, seed=1))["start"], sampled(segment(of, seed=2))["start"])


# --- the slate


@pytest.mark.parametrize(
    ("frame", "fps", "expected"),
    [
        (0, "15", "00:00:00:00"),
        (-3, "15", "00:00:00:00"),
        (14, "15", "00:00:00:14"),
        (15, "15", "00:00:01:00"),
        (24 * 3600 - 1, "24", "00:59:59:23"),
        (24 * 3600, "24", "01:00:00:00"),
        (23, "24000/1001", "00:00:00:23"),
        (24, "24000/1001", "00:00:01:00"),
        (86_400, "24000/1001", "01:00:00:00"),
        (30, "30000/1001", "00:00:01:00"),
        (12, "25/2", "00:00:00:12"),
        (13, "25/2", "00:00:01:00"),
        (25, "25/2", "00:00:02:00"),
        (3, "1", "00:00:03:00"),
        (239, "240", "00:00:00:239"),
        (240, "240", "00:00:01:000"),
    ],
)
def test_timecode(frame: int, fps: str, expected: str) -> None:
    assert timecode(frame, Fraction(fps)) == expected


@given(share=st.fractions(0, 1), fps=st.fractions(1, 240, max_denominator=1001))
def test_timecode_counts_every_frame_once(share: Fraction, fps: Fraction) -> None:
    frame = int(share * fps * 3600)
    now, after = timecode(frame, fps), timecode(frame + 1, fps)
    assert now < after
    assert len(now) == len(after)
    if now[:8] == after[:8]:
        assert int(after[9:]) == int(now[9:]) + 1
    else:
        assert int(after[9:]) == 0


sides = st.integers(1, 256).map(lambda n: 16 * n)


@given(width=sides, height=sides, length=st.sampled_from([11, 12]))
def test_the_slate_stays_inside_any_picture(width: int, height: int, length: int) -> None:
    layout = lay_out(Size(width, height), length)
    shown = len("0" * length) - layout.code.start
    assert layout.code_left >= 0
    assert layout.pad * 2 + layout.id_width <= width or not layout.id_width
    assert layout.code_left + shown * layout.size * 0.34 <= width
    if layout.prompt_room:
        assert layout.prompt_room >= layout.size
        assert layout.prompt_top + layout.prompt_room + layout.pad <= MAX_BAND * height
    if layout.id_width and layout.code_top > layout.pad:
        assert layout.prompt_top + layout.pad <= MAX_ID_BAND * height
    assert layout.id_width or not layout.prompt_room, "the prompt goes before the clip id"
    assert layout.code.start < length or not layout.id_width or width < 5 * layout.size, "id before time"


def test_where_room_is_short_the_prompt_goes_first() -> None:
    full, tiny = lay_out(Size(832, 480), 11), lay_out(Size(64, 64), 11)
    assert full.prompt_room > 0.3 * 480, "the prompt may take about a third of the height"
    assert full.code.start == 0
    assert full.size == 19
    assert tiny.prompt_room == 0
    assert tiny.id_width > 0
    assert tiny.code.start == 3, "minutes, seconds and frames are left"
    assert lay_out(Size(3840, 2160), 11).size == 85


def contrast(lighter: float, darker: float) -> float:
    """WCAG contrast of two sRGB greys, 0..255."""

    def luminance(value: float) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else float(((share + 0.055) / 1.055) ** 2.4)

    return (luminance(lighter) + 0.05) / (luminance(darker) + 0.05)


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("size", [(64, 64), (832, 480), (480, 832)])
def test_the_slate_is_readable_on_any_picture(tmp_path: Path, grey: int, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (grey, grey, grey)).save(tmp_path / "flat.png")
    first = frames_of(segment(anchor(tmp_path / "flat.png", *size), frames=1))[0]
    layout = lay_out(Size(*size), 11)
    code = first[layout.code_top : layout.code_top + layout.size, layout.code_left :]
    assert contrast(int(code.max()), int(code.min())) > 5
    assert (first[-size[1] // 5 :] == grey).all(), "the slate leaves the rest of the picture alone"


def test_the_slate_does_not_move_with_the_camera(picture: Path) -> None:
    of = segment(anchor(picture, 320, 192), fps=Fraction(1), frames=9)
    frames = frames_of(of).astype(int)
    letters = (frames[0, :20, :160, 0] > 200) & (frames[0, :20, :160, 2] < 140)  # amber
    assert letters.sum() > 20
    for frame in frames[1:]:
        assert np.abs(frame[:20, :160][letters] - frames[0, :20, :160][letters]).mean() < 12
    assert np.abs(frames[-1, 60:] - frames[0, 60:]).mean() > 1, "the picture below does move"


def test_the_timecode_counts_within_the_clip(picture: Path) -> None:
    of = anchor(picture)
    still = {"start": np.array([0.5, 0.5, 1.1]), "pose": np.array([0.5, 0.5, 1.1])}
    early = list(Animatic().decode(segment(of), still))
    late = list(Animatic().decode(segment(of, first_frame=10), still))
    np.testing.assert_array_equal(early[10], late[0])
    assert not np.array_equal(early[0], late[0])


def test_notes_name_what_cannot_be_shown(picture: Path) -> None:
    of = anchor(picture)
    engine = Animatic()
    assert engine.notes(segment(of)) == ()
    assert engine.notes(segment(of, prompt="naïve 猫 🐈\u200d⬛\n\x1b")) == ()
    (note,) = engine.notes(segment(of, prompt="a \U000f0000 b"))
    assert note.startswith("no font on this machine can show (U+F0000): \ufffd is shown instead; install")
    (note,) = engine.notes(segment(of, prompt="".join(map(chr, range(0xF0000, 0xF0010)))))
    assert "(U+F0009) and 6 more:" in note
    assert note == engine.notes(segment(of, prompt="".join(map(chr, range(0xF0000, 0xF0010))), seed=5))[0]


def slate_rows(of: Segment) -> int:
    """How many rows from the top the slate changes, on grey."""
    changed = np.abs(frames_of(of)[0].astype(int) - 200).max(axis=(1, 2)) > 8
    return int(np.flatnonzero(changed).max()) + 1


@pytest.mark.parametrize(
    ("size", "most"), [((832, 480), 600), ((480, 832), 620), ((416, 240), 350), ((1280, 720), 600)]
)
def test_a_long_prompt_is_shown_whole_and_a_longer_one_is_cut_and_noted(
    tmp_path: Path, size: tuple[int, int], most: int
) -> None:
    Image.new("RGB", size, (200, 200, 200)).save(tmp_path / "flat.png")
    of = segment(anchor(tmp_path / "flat.png", *size), frames=1)
    words = "The old lighthouse keeper climbs the winding stairs with a lantern, wind in his coat. " * 40
    whole, longer = replace(of, prompt=words[:most]), replace(of, prompt=words)
    assert Animatic().notes(whole) == ()
    (note,) = Animatic().notes(longer)
    assert note.startswith(f"the prompt is cut on the slate of window: {len(words)} characters are more than")
    rows = [slate_rows(replace(of, prompt=words[:count])) for count in (60, most, len(words))]
    assert rows[0] < rows[1]
    assert rows[2] <= (MAX_BAND + 0.05) * size[1]


def test_no_note_of_a_cut_in_a_picture_too_small_for_prompts(picture: Path) -> None:
    assert Animatic().notes(segment(anchor(picture, 64, 64), prompt=PROMPT * 20)) == ()
    assert Animatic().notes(segment(anchor(picture, 160, 96), prompt=PROMPT * 20)) == ()


# --- the engine


def test_every_input_is_named_and_no_other(picture: Path) -> None:
    of = segment(anchor(picture), fps=Fraction(24000, 1001), overlap=1, first_frame=79)
    assert AnimaticIdentity().inputs(of) == {
        "prompt": PROMPT,
        "seed": 0,
        "width": 160,
        "height": 96,
        "frames": 21,
        "overlap": 1,
        "anchor": of.anchor.pixels,
        "clip": "window",
        "fps": "24000/1001",
        "first_frame": 79,
    }
    assert (AnimaticIdentity().name, AnimaticIdentity().revision) == ("animatic", 1)


def test_a_changed_or_lost_anchor_is_an_error_with_a_cure(picture: Path) -> None:
    of = segment(anchor(picture))
    latents = sampled(of)
    Image.new("RGB", (64, 64)).save(picture)
    with pytest.raises(RenderError, match=r"anchor\.png changed while .* run the same command again"):
        next(Animatic().decode(of, latents))
    picture.unlink()
    with pytest.raises(RenderError, match=r"anchor\.png does not exist"):
        next(Animatic().decode(of, latents))


def test_keys_cost_no_heavy_import() -> None:
    code = (
        "import sys; from svi_story.engines.animatic import Animatic; Animatic().identity;"
        "print([name for name in ('numpy', 'PIL', 'typst', 'fontTools', 'torch') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "[]\n"


# --- pinned frames


def drawn_anchor(folder: Path) -> Anchor:
    """A picture with edges and shades, made of integers."""
    y, x = np.ogrid[0:144, 0:240]
    pixels = np.stack(np.broadcast_arrays(x, y + 60, (x // 12 + y // 12) % 2 * 140 + 40), axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "drawn.png")
    return anchor(folder / "drawn.png", 160, 96)


def test_frames_change_only_with_the_revision(tmp_path: Path) -> None:
    """When frames are meant to change: raise the revision, delete the old file, run with WRITE_GOLDEN=1."""
    of = drawn_anchor(tmp_path)
    first = segment(of, clip="fox", prompt="Лиса 狐 ثعلب 🦊 walks.", seed=3, frames=9)
    frames = frames_of(first)
    second = segment(of, clip="den", seed=4, frames=9, overlap=1, first_frame=-1)
    later = frames_of(second, Carry("animatic", sampled(first), list(frames[-1:])))
    strip = np.concatenate([frames[0], frames[4], frames[8], later[4], later[8]])
    golden = DATA / f"animatic-revision-{AnimaticIdentity().revision}.png"
    if os.environ.get("WRITE_GOLDEN"):
        Image.fromarray(strip).save(golden, optimize=True)
    pinned = np.asarray(Image.open(golden)).astype(int)
    # Other versions of Pillow and Typst may round otherwise; another camera or slate is far beyond this.
    assert np.abs(strip - pinned).mean() < 0.05
    assert np.abs(strip - pinned).max() <= 16
