"""`svi-story review FILM`: any film file, what degrades in it, and what was done to its frames."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from review_films import bright, hue, pan, scene, soft, view

from svi_story.cli.console import Display
from svi_story.events import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from conftest import Ended
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    Run = Callable[..., Ended]

SIZE = (208, 128)
RATE = 4
LENGTH = 30 * RATE


def write_film(
    path: Path,
    frames: Iterable[Frame],
    rate: int = RATE,
    *,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    prepare: Callable[[Any], object] = lambda _stream: None,
    times: Sequence[int] | None = None,
    chapters: Sequence[int] = (),
) -> Path:
    """A film file; `times` are in thousandths of a second, `chapters` are their first frames."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.pix_fmt = pixels
        if codec == "mpeg4":
            stream.codec_context.qmax = 3
            stream.bit_rate = 4_000_000
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
                prepare(stream)
                container.set_chapters(
                    [
                        {
                            "id": each,
                            "start": start,
                            "end": start + 1,
                            "time_base": Fraction(1, rate),
                            "metadata": {"title": f"part {each}"},
                        }
                        for each, start in enumerate(chapters)
                    ]
                )
            picture = av.VideoFrame.from_ndarray(frame, "rgba" if frame.shape[2] == 4 else "rgb24")
            picture.pts = number if times is None else times[number]
            picture.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@cache
def lingering() -> tuple[Frame, ...]:
    """A camera that moves on so slowly that most of the picture stays."""
    rng = np.random.default_rng(2)
    frames = (view(scene(), 0.5 + 0.1 * n / LENGTH, 1.5, SIZE) for n in range(LENGTH))
    return tuple(np.clip(each + rng.normal(0, 1, each.shape), 0, 255).astype(np.uint8) for each in frames)


def growing(frames: Sequence[Frame], change: Callable[[Frame, float], Frame]) -> list[Frame]:
    """A change that begins after a third of the film and grows to all of it at the end."""
    return [change(each, max(1.5 * n / len(frames) - 0.5, 0)) for n, each in enumerate(frames)]


def warm(frame: Frame, share: float) -> Frame:
    """Evening light: less light, and less blue, in linear RGB."""
    gain = np.array([1 - 0.2 * share, 1 - 0.4 * share, 1 - 0.6 * share])
    linear = (frame / 255.0) ** 2.2 * gain
    return np.asarray((255 * linear ** (1 / 2.2)).round(), np.uint8)


def melted(frame: Frame, share: float) -> Frame:
    """Everything in a blur, and dim."""
    return bright(soft(frame, 0.1 + 12 * share), 1 - 0.5 * share) if share else frame


@pytest.fixture
def reviewed(svi_story: Run) -> Callable[..., dict[str, Any]]:
    """The JSON of a film's review."""

    def review(path: Path, *options: object) -> dict[str, Any]:
        ended = svi_story("review", path, "--json", *options)
        assert ended.code == 0, ended.err
        answer: dict[str, Any] = json.loads(ended.out)
        return answer

    return review


DEGRADING = {
    "colour": lambda frame, share: hue(frame, 0, 1 + 1.5 * share),
    "softening": lambda frame, share: soft(frame, 1.5 * share) if share > 0.05 else frame,
    "melting": melted,
}


@pytest.mark.parametrize("what", DEGRADING)
def test_what_degrades_is_found(what: str, reviewed: Callable[..., dict[str, Any]]) -> None:
    film = write_film(Path("film.mp4"), growing(lingering(), DEGRADING[what]))
    answer = reviewed(film)
    found = [each for each in answer["warnings"] if (each["kind"], each["what"]) == ("degradation", what)]
    assert len(found) == 1, answer["warnings"]
    assert 0 <= found[0]["since"] <= 25
    assert found[0]["frame"] == round(found[0]["since"] * RATE)
    assert found[0]["remedies"] == found[0]["cures"] != []
    assert (answer["verdict"], answer["film"], answer["board"]) == ("degraded", "film.mp4", None)


STORIES: dict[str, Callable[[], Sequence[Frame]]] = {
    "nothing": lingering,
    "the light changes": lambda: growing(lingering(), warm),
    "night falls": lambda: growing(lingering(), lambda frame, share: bright(frame, 1 - 0.8 * share)),
    "a fade to black": lambda: [
        bright(each, min((LENGTH - n) / (6 * RATE), 1) - 0.02) for n, each in enumerate(lingering())
    ],
    "the camera comes nearer": lambda: [
        view(scene(), 0.5, 1.5 * 1.7 ** (n / LENGTH), SIZE) for n in range(LENGTH)
    ],
    "other scenes": lambda: [
        each
        for seed in range(6)
        for each in [view(hue(scene(seed), 40 * seed, 1 + seed / 3), 0.5, 1.5, SIZE)] * (LENGTH // 6)
    ],
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_a_story_is_no_degradation(
    story: Callable[[], Sequence[Frame]], reviewed: Callable[..., dict[str, Any]]
) -> None:
    answer = reviewed(write_film(Path("film.mp4"), story()))
    assert [each for each in answer["warnings"] if each["kind"] == "degradation"] == []


def test_where_nothing_stays_it_cannot_tell(reviewed: Callable[..., dict[str, Any]], svi_story: Run) -> None:
    frames = [view(scene(n // 4), 0.3 + 0.08 * (n % 4), 1.5, SIZE) for n in range(80)]
    film = write_film(Path("film.mp4"), frames)
    answer = reviewed(film)
    assert (answer["verdict"], answer["judged_share"]) == ("cannot tell", 0)
    assert not [each for each in answer["warnings"] if each["kind"] == "degradation"]
    assert svi_story("review", film).code == 0
    html = Path("film.review.html").read_text("utf-8")
    assert "Cannot tell whether it degrades" in html
    assert "Nothing wrong" not in html
    assert 'class="unjudged"' in html


def test_retiming_is_found_and_left_out(reviewed: Callable[..., dict[str, Any]], svi_story: Run) -> None:
    source = pan(200, (104, 64), 0.006)
    film = write_film(Path("film.mp4"), [source[n * 16 // 25] for n in range(300)], 25)
    answer = reviewed(film)
    assert (answer["fps"], answer["file"]["source_fps"]) == ("25", "16")
    assert answer["file"]["repeated_frames"] == pytest.approx(108, abs=10)
    assert answer["warnings"] == []
    assert "Converted from 16 to 25 fps" in svi_story("review", film, "--json").err


def test_frames_repeated_at_joins_are_found(reviewed: Callable[..., dict[str, Any]]) -> None:
    source = pan(200, (104, 64), 0.006)
    joined = [source[n - n // 31] for n in range(180)]
    answer = reviewed(write_film(Path("film.mp4"), joined, 25))
    assert {each["kind"] for each in answer["warnings"]} == {"duplicate"}
    assert [each["frame"] for each in answer["warnings"]] == [31, 62, 93, 124, 155]
    assert "every 31 frames" in answer["warnings"][0]["remedies"][0]


def test_a_frozen_picture_and_a_flash_are_found(reviewed: Callable[..., dict[str, Any]]) -> None:
    frames = pan(150, (104, 64), 0.01)
    frames[60:80] = [frames[60]] * 20
    frames[120] = bright(frames[120], 1.8)
    answer = reviewed(write_film(Path("film.mp4"), frames, 25))
    found = [(each["kind"], each["frame"], each["frames"]) for each in answer["warnings"]]
    assert found == [("frozen", 60, 20), ("flash", 120, 1)]


def test_a_title_between_scenes_is_not_frozen(reviewed: Callable[..., dict[str, Any]]) -> None:
    title = np.zeros((64, 104, 3), np.uint8)
    title[24:40, 20:84] = 255
    frames = [*pan(50, (104, 64), 0.01), *[title] * 50, *pan(50, (104, 64), 0.01)]
    answer = reviewed(write_film(Path("film.mp4"), frames, 25))
    assert answer["warnings"] == []
    assert [clip["start"] for clip in answer["clips"]] == [0, 50, 100]


def test_clips_come_from_cuts_chapters_or_their_length(reviewed: Callable[..., dict[str, Any]]) -> None:
    frames = [*pan(60, (104, 64)), *(hue(each, 120) for each in pan(60, (104, 64), start=0.1))]
    film = write_film(Path("film.mp4"), frames, 25)
    assert [clip["start"] for clip in reviewed(film)["clips"]] == [0, 60]
    assert [clip["start"] for clip in reviewed(film, "--clip-frames", 50)["clips"]] == [0, 50, 100]
    film = write_film(Path("film.mkv"), frames, 25, chapters=(0, 30, 60))
    answer = reviewed(film, "--clip-frames", 50)
    assert [(clip["id"], clip["start"]) for clip in answer["clips"]] == [
        ("part 0", 0),
        ("part 1", 30),
        ("part 2", 60),
    ]
    assert [(join["frame"], join["kind"]) for join in answer["joins"]] == [(30, "continue"), (60, "cut")]
    assert answer["joins"][0]["step"] == pytest.approx(1, abs=0.2)


def test_a_missing_frame_at_a_join_is_found(reviewed: Callable[..., dict[str, Any]]) -> None:
    source = pan(130, (104, 64), 0.006)
    film = write_film(Path("film.mp4"), [*source[:60], *source[61:120]], 25)
    answer = reviewed(film, "--clip-frames", 60)
    assert [(each["kind"], each["frame"]) for each in answer["warnings"]] == [("jump", 60)]


def test_pictures_are_upright_and_have_square_pixels(reviewed: Callable[..., dict[str, Any]]) -> None:
    frames = pan(20, (104, 64))
    turned = write_film(Path("turned.mp4"), frames, prepare=lambda stream: stream.set_display_rotation(90))
    answer = reviewed(turned)
    assert (answer["width"], answer["height"]) == (64, 104)
    assert abs(answer["file"]["rotation"]) == 90

    def narrow(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(1, 2)

    answer = reviewed(write_film(Path("narrow.mp4"), frames, prepare=narrow))
    assert (answer["width"], answer["height"], answer["file"]["pixel_aspect"]) == (104, 128, "1:2")


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [("film.mkv", "ffv1", "yuv420p10le"), ("film.mov", "qtrle", "argb"), ("film.avi", "mjpeg", "yuvj420p")],
)
def test_films_of_any_kind_are_read(
    name: str, codec: str, pixels: str, reviewed: Callable[..., dict[str, Any]]
) -> None:
    film = write_film(Path(name), pan(30, (104, 64)), 24, codec=codec, pixels=pixels)
    answer = reviewed(film)
    assert (answer["frames"], answer["fps"], answer["file"]["damage"]) == (30, "24", "")
    assert answer["warnings"] == []


def test_a_variable_rate_is_no_fault(reviewed: Callable[..., dict[str, Any]]) -> None:
    gaps = np.random.default_rng(0).choice([20, 40, 80], 60).cumsum().tolist()
    film = write_film(Path("film.mkv"), pan(60, (104, 64)), 1000, times=gaps)
    answer = reviewed(film, "--clip-frames", 20)
    assert answer["file"]["variable_rate"]
    assert answer["warnings"] == answer["joins"] == []
    assert len(answer["clips"]) == 3


def test_time_stamps_may_jump(reviewed: Callable[..., dict[str, Any]]) -> None:
    times = [40 * n + (2**40 if n >= 30 else 0) for n in range(60)]
    film = write_film(Path("film.mkv"), pan(60, (104, 64)), 1000, codec="ffv1", times=times)
    answer = reviewed(film)
    assert (answer["frames"], answer["file"]["variable_rate"]) == (60, False)
    assert float(Fraction(answer["fps"])) == pytest.approx(25, abs=0.01)
    assert answer["warnings"] == []


def test_a_truncated_film_is_reviewed_as_far_as_it_goes(svi_story: Run) -> None:
    film = write_film(Path("film.mkv"), pan(100, (104, 64)), 25)
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    ended = svi_story("review", film, "--json")
    assert ended.code == 0, ended.err
    answer = json.loads(ended.out)
    assert 20 < answer["frames"] < 80
    assert answer["file"]["damage"]
    assert "cut off or damaged" in ended.err


@pytest.mark.parametrize("content", [b"", b"no film", b"#EXTM3U\nhttp://127.0.0.1/film.ts\n"])
def test_what_is_no_film_is_an_error(content: bytes, svi_story: Run) -> None:
    Path("film.mp4").write_bytes(content)
    ended = svi_story("review", "film.mp4")
    assert (ended.code, ended.out) == (2, "")
    assert "film.mp4: the film" in ended.err
    assert "Traceback" not in ended.err
    assert not Path("film.review.html").exists()


def test_pictures_and_missing_files_are_errors(svi_story: Run) -> None:
    Image.new("RGB", (64, 64)).save("still.png")
    assert "single picture" in svi_story("review", "still.png").err
    assert "does not exist" in svi_story("review", "none.mp4").err
    write_film(Path("film.mp4"), pan(10, (104, 64)))
    assert svi_story("review", "film.mp4", "--reference", "none.png").code == 2


def test_the_page_lies_beside_the_film_and_replaces_no_foreign_file(svi_story: Run) -> None:
    Path("films").mkdir()
    film = write_film(Path("films/film.mp4"), pan(40, (104, 64)))
    answer = json.loads(svi_story("review", film, "--reference", write_reference(), "--json").out)
    assert answer["file"]["distance"]["first"] > 0
    ended = svi_story("review", film, "--reference", write_reference())
    assert (ended.code, ended.out) == (0, "films/film.review.html\n"), ended.err
    html = Path("films/film.review.html").read_text("utf-8")
    assert 'src="./film.mp4"' in html
    for empty in ("<article", 'data-plot="seams"', "prompt", "svi-story render"):
        assert empty not in html.split("<body>")[1].split("<script")[0], empty
    assert svi_story("review", film).code == 0
    assert svi_story("review", film, "-o", "pages").out == "pages/film.review.html\n"
    assert 'src="./../films/film.mp4"' in Path("pages/film.review.html").read_text("utf-8")
    Path("films/film.review.html").write_text("mine")
    ended = svi_story("review", film)
    assert (ended.code, Path("films/film.review.html").read_text("utf-8")) == (2, "mine")
    assert "was not written by svi-story" in ended.err
    assert not Path("renders").exists()


def test_progress_is_shown_in_frames() -> None:
    shown = Display(lambda *_text, **_how: None)
    shown(Measured(Path("film.mp4"), "frames", 50, 200))
    (line,) = shown.lines(0.0, 60)
    assert line.startswith("film.mp4")
    assert line.endswith("50/200 frames")


def write_reference() -> Path:
    """A picture that a film may be compared with."""
    Image.fromarray(cv2.resize(scene(), SIZE)).save("reference.png")
    return Path("reference.png")


def test_options_of_films_are_refused_for_boards(write_board: Callable[..., Path], svi_story: Run) -> None:
    ended = svi_story("review", write_board(), "--clip-frames", 81)
    assert ended.code == 2
    assert "--clip-frames" in ended.err
