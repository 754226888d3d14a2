"""Films handed to editors: what `export` writes, keeps and refuses."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import opentimelineio as otio
import pytest
from cut_frames import Library
from sound_files import wav_bytes

from svi_story.cache.frames import Frames
from svi_story.cache.store import Store
from svi_story.cut.frames import PieceFrames
from svi_story.cut.timeline import Piece, Span
from svi_story.errors import RenderError
from svi_story.export.media import CODECS, is_current, media_inputs, write_media
from svi_story.plan.model import Size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Ended
    from numpy.typing import NDArray

    Run = Callable[..., Ended]
    WriteBoard = Callable[..., Path]

NTSC = Fraction(24000, 1001)
FILM: dict[str, Any] = {
    "resolution": "256x128",
    "fps": "24000/1001",
    "engine": {"name": "animatic", "max_frames": 13},
    "clips": [
        {"id": "sea", "prompt": "The sea is rising, 猫.", "frames": 13, "caption": "Hello"},
        {"id": "fog", "prompt": "The fog is drifting in.", "duration": 1},
        {"id": "rain", "prompt": "The rain is falling.", "frames": 9, "transition": {"fade": 0.25}},
    ],
    "cut": {"title_card": {"text": "Rain", "duration": 0.5}, "fade_in": 0.2},
}


@pytest.fixture
def film(write_board: WriteBoard, svi_story: Run) -> Path:
    board = write_board("storyboards/a ü.yaml", reference="../anchor.png", **FILM)
    assert svi_story("render", board).code == 0
    return board


def clips_in(timeline: Path) -> list[Any]:
    whole = otio.adapters.read_from_file(str(timeline))
    external = otio.schema.ExternalReference
    return [clip for clip in whole.find_clips() if isinstance(clip.media_reference, external)]


def media_of(clip: Any, timeline: Path) -> Path:
    return timeline.parent / str(otio.url_utils.filepath_from_url(clip.media_reference.target_url))


def rgb(path: Path) -> Iterator[NDArray[np.float64]]:
    """Every picture of a 10-bit 4:2:2 file in BT.709, by the book."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.format.name == "yuv422p10le"
            shaped = ((np.frombuffer(bytes(plane), np.uint16), plane) for plane in frame.planes)
            planes = [
                values.reshape(plane.height, -1)[:, : plane.width].astype(float) for values, plane in shaped
            ]
            luma = (planes[0] - 64) / 876
            blue, red = (np.repeat((plane - 512) / 896, 2, 1) for plane in planes[1:])
            r, b = luma + 1.5748 * red, luma + 1.8556 * blue
            g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
            yield np.clip(np.stack([r, g, b], -1) * 255, 0, 255)


def assert_alike(path: Path, due: list[NDArray[np.uint8]]) -> None:
    made = list(rgb(path))
    assert len(made) == len(due)
    for number, (one, other) in enumerate(zip(made, due, strict=True)):
        noise = ((one - other) ** 2).mean()
        assert noise < 255**2 / 10**3.5, f"frame {number}: {10 * np.log10(255**2 / noise):.1f} dB"


def frames_of(path: str) -> list[NDArray[np.uint8]]:
    with Frames(Path(path)) as frames:
        return list(frames)


def test_a_timeline_points_into_the_cache(film: Path, svi_story: Run, tmp_path: Path) -> None:
    ended = svi_story("export", film, "--to", "otio")
    assert (ended.code, ended.out) == (0, "renders/a ü.otio\n")
    timeline = tmp_path / "renders/a ü.otio"
    clips = clips_in(timeline)
    assert [clip.name for clip in clips] == ["sea", "fog 1/2", "fog 2/2", "rain"]
    for clip in clips:
        media = media_of(clip, timeline)
        assert clip.media_reference.target_url.startswith(".cache/entries/")
        with av.open(str(media)) as container:
            held = sum(1 for _ in container.decode(video=0))
        assert held == clip.media_reference.available_range.duration.value
    plan = json.loads(svi_story("plan", film, "--json").out)["boards"][0]
    assert otio.adapters.read_from_file(str(timeline)).duration().value == plan["frames"]


@pytest.mark.parametrize("media", [[], ["--media", "prores"]])
def test_all_media_have_different_names(
    media: list[str], write_board: WriteBoard, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/rain.wav", "b/rain.wav", "b/Rain.wav", "a/fog.prores.mov"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(wav_bytes(name.encode() * 480))
    clips = [
        {"id": "fog", "prompt": "Fog.", "voice": "a/rain.wav", "sounds": ["b/rain.wav", "a/fog.prores.mov"]},
        {"id": "sea", "prompt": "The sea.", "voice": "b/Rain.wav", "sounds": ["a/rain.wav"]},
    ]
    board = write_board(
        clips=clips,
        engine={"name": "animatic", "max_frames": 13},
        resolution="256x128",
        cut={"audio": "a/rain.wav"},
    )
    assert svi_story("render", board).code == 0
    for _ in range(2):
        ended = svi_story("export", board, "--to", "otio", *media)
        assert ended.code == 0, ended.err
    timeline = tmp_path / "renders/board.otio"
    files = {media_of(clip, timeline) for clip in clips_in(timeline)}
    assert len(files) == 6
    assert len({file.name.casefold() for file in files}) == 6
    contents = {file.read_bytes() for file in files if file.suffix == ".wav"}
    assert contents == {(tmp_path / name).read_bytes() for name in ("a/rain.wav", "b/rain.wav", "b/Rain.wav")}
    bundle = tmp_path / "board.otioz"
    monkeypatch.chdir(timeline.parent)  # OTIO's adapter takes references as relative to the working directory
    otio.adapters.write_to_file(otio.adapters.read_from_file(str(timeline)), str(bundle))
    assert bundle.stat().st_size > sum(file.stat().st_size for file in files)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "renders/board.media/rain-2.wav").write_bytes(b"mine")
    ended = svi_story("export", board, "--to", "otio", *media)
    assert "rain-2.wav" in ended.err
    assert (tmp_path / "renders/board.media/rain-2.wav").read_bytes() == b"mine"


@pytest.mark.parametrize("codec", ["prores", "dnxhr"])
def test_media_hold_every_frame_of_every_clip(codec: str, film: Path, svi_story: Run, tmp_path: Path) -> None:
    ended = svi_story("export", film, "--to", "otio", "--media", codec, "--as", "cut/my film.otio")
    assert (ended.code, ended.out) == (0, "cut/my film.otio\n"), ended.err
    plan = json.loads(svi_story("plan", film, "--json").out)["boards"][0]
    timeline = tmp_path / "cut/my film.otio"
    shutil.move(tmp_path / "cut", tmp_path / "elsewhere")
    timeline = tmp_path / "elsewhere/my film.otio"
    clips = {clip.name: clip for clip in clips_in(timeline)}
    assert list(clips) == ["title card", "sea", "fog", "rain"]
    for told in plan["clips"]:
        due = [
            frame
            for part in told["segments"]
            for frame in frames_of(f"{part['path']}/frames.avi")[part["frames"] - part["contributes"] :]
        ]
        clip = clips[told["id"]]
        assert clip.media_reference.available_range.duration.value == len(due)
        assert_alike(media_of(clip, timeline), due)
    with av.open(str(media_of(clips["sea"], timeline))) as container:
        video = container.streams.video[0]
        assert video.average_rate == NTSC
        context = video.codec_context
        assert context.profile == {"prores": "HQ", "dnxhr": "DNXHR HQX"}[codec]
        colours = context.color_range, context.colorspace, context.color_primaries, context.color_trc
        assert colours == (1, 1, 1, 1)


def written(err: str) -> list[str]:
    return [
        line.rpartition("/")[2].partition(".")[0] for line in err.splitlines() if line.endswith("written")
    ]


def test_media_are_written_once_and_again_where_they_changed(
    film: Path, write_board: WriteBoard, svi_story: Run, tmp_path: Path
) -> None:
    def export() -> list[str]:
        ended = svi_story("export", film, "--to", "otio", "--media", "prores")
        assert ended.code == 0, ended.err
        return written(ended.err)

    assert export() == ["sea", "fog", "rain", "_title-card"]
    assert export() == []
    media = tmp_path / "renders/a ü.media"
    sea = media / "sea.prores.mov"
    sea.write_bytes(sea.read_bytes()[:-1])
    card = bytearray((media / "_title-card.prores.mov").read_bytes())
    card[len(card) // 2] ^= 1
    (media / "_title-card.prores.mov").write_bytes(card)
    (media / "fog.prores.mov.json").write_text("[" * 100_000)
    (media / "rain.prores.mov").unlink()
    assert export() == ["fog", "rain"], "what was changed is kept"
    for name in ("sea.prores.mov", "_title-card.prores.mov", "fog.prores.mov.json"):
        (media / name).unlink()
    assert export() == ["sea", "fog", "_title-card"]
    clips = [dict(clip) for clip in FILM["clips"]]
    clips[2]["prompt"] = "The rain is over."
    clips[0]["caption"] = "Good bye"
    write_board("storyboards/a ü.yaml", reference="../anchor.png", **{**FILM, "clips": clips, "cut": {}})
    assert svi_story("render", film).code == 0
    assert export() == ["rain"]
    assert not [path for path in media.iterdir() if path.name.startswith(".")]


def test_what_is_not_rendered_is_named_and_nothing_is_written(
    film: Path, write_board: WriteBoard, svi_story: Run, tmp_path: Path
) -> None:
    clips = [*FILM["clips"], {"id": "new", "prompt": "The sun is out."}]
    write_board("storyboards/a ü.yaml", reference="../anchor.png", **{**FILM, "clips": clips})
    for media in ([], ["--media", "prores"]):
        ended = svi_story("export", film, "--to", "otio", *media)
        assert (ended.code, ended.out) == (2, "")
        cure = f"run `svi-story render '{film}'` first"
        assert ended.err == f"{film}: not rendered yet: new; {cure}\n"
    assert not list((tmp_path / "renders").glob("*.otio"))
    assert not list((tmp_path / "renders").glob("*.media"))


def test_captions_are_written_at_the_film_s_times(
    write_board: WriteBoard, svi_story: Run, tmp_path: Path
) -> None:
    """A fade belongs to the clip that comes in, a card goes before all; nothing has to be rendered."""
    clips = [{**clip, "caption": f"Say {clip['id']} <b>"} for clip in FILM["clips"]]
    board = write_board(**{**FILM, "fps": 15, "clips": clips, "cut": {"title_card": "Hi", "captions": "off"}})
    ended = svi_story("export", board, "--to", "srt", "--as", "new/words.srt")
    assert (ended.code, ended.out) == (0, "new/words.srt\n"), ended.err
    assert (tmp_path / "new/words.srt").read_text() == (
        "1\n00:00:02,000 --> 00:00:02,867\nSay sea \uff1cb\uff1e\n\n"
        "2\n00:00:02,867 --> 00:00:03,667\nSay fog \uff1cb\uff1e\n\n"
        "3\n00:00:03,667 --> 00:00:04,267\nSay rain \uff1cb\uff1e\n"
    )
    without_weights = svi_story("export", board, "--to", "srt", "--engine", "svi")
    assert (without_weights.code, without_weights.err) == (0, "")
    assert svi_story("export", write_board(), "--to", "srt").code == 2


def test_a_damaged_entry_is_not_handed_on(film: Path, svi_story: Run, tmp_path: Path) -> None:
    entry = next((tmp_path / "renders/.cache/entries").rglob("frames.avi"))
    entry.write_bytes(entry.read_bytes()[:-1])
    ended = svi_story("export", film, "--to", "otio")
    assert ended.code == 2
    assert "not rendered yet: " in ended.err


def test_what_was_exported_is_in_use(write_board: WriteBoard, svi_story: Run, tmp_path: Path) -> None:
    """A timeline points into the cache: `gc` spares that as it spares films'."""
    board = write_board(**{**FILM, "cut": {}})
    for clip in ("sea", "fog", "rain"):
        assert svi_story("render", board, "--only", clip).code == 0
    shutil.rmtree(tmp_path / "renders/.cache/films")
    assert svi_story("export", board, "--to", "otio").code == 0
    store = Store(tmp_path / "renders/.cache", print)
    assert not [each for each in store.garbage(now=4e9) if "entries" in each.path.parts]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "edl"], "'edl' is none of"),
        (["--to", "srt", "--media", "prores"], "goes with --to otio only"),
        (["--to", "otio", "--media", "h264"], "'h264' is none of prores, dnxhr"),
        (["--to", "otio", "--as", "board.yaml"], "'board.yaml' does not end in .otio"),
        (["--to", "otio", "--engine", "none"], "'none' is none of"),
        ([], "Missing option '--to'"),
    ],
)
def test_usage_errors(words: list[str], told: str, write_board: WriteBoard, svi_story: Run) -> None:
    board = write_board()
    before = board.read_bytes()
    ended = svi_story("export", board, *words)
    assert ended.code == 2
    assert told in ended.err
    assert board.read_bytes() == before


def test_a_folder_of_boards_is_not_a_board(write_board: WriteBoard, svi_story: Run, tmp_path: Path) -> None:
    write_board("storyboards/a.yaml", reference="../anchor.png")
    write_board("storyboards/b.yaml", reference="../anchor.png")
    ended = svi_story("export", "storyboards", "--to", "otio")
    both = "storyboards/a.yaml, storyboards/b.yaml"
    assert (ended.code, ended.err) == (2, f"storyboards: holds 2 boards; name one of them: {both}\n")
    broken = write_board("c.yaml", clips=[])
    assert svi_story("export", broken, "--to", "otio").code == 2


def test_pictures_that_dnxhr_cannot_hold(write_board: WriteBoard, svi_story: Run, tmp_path: Path) -> None:
    board = write_board(engine={"name": "animatic", "max_frames": 13})
    ended = svi_story("export", board, "--to", "otio", "--media", "dnxhr")
    assert ended.code == 2
    assert "DNxHR HQX holds no picture smaller than 256x120, and the board's are 64x64" in ended.err
    assert not (tmp_path / "renders").exists() or not list((tmp_path / "renders").glob("*.media"))


@pytest.mark.parametrize("name", ["prores", "dnxhr"])
def test_a_file_holds_the_frames_it_was_given(name: str, tmp_path: Path) -> None:
    """Several spans, by their frame codes; at the sizes that are odd in blocks too."""
    codec, target = CODECS[name], tmp_path / "a.mov"
    spans = (Span("7", 3, 12), Span("9", 1, 4))
    library = Library()
    with PieceFrames(Piece(spans), Wide(library)) as frames:
        inputs = media_inputs(spans, codec, Size(272, 144), NTSC)
        write_media(target, frames, codec, NTSC, inputs)
        due = [frames[number] for number in range(12)]
    assert_alike(target, due)
    assert library.most_open == 1
    assert is_current(target, inputs)
    assert not is_current(target, media_inputs(spans[:1], codec, Size(272, 144), NTSC))
    assert not is_current(target, media_inputs(spans, codec, Size(272, 144), Fraction(24)))


class Wide:
    """Opens coded frames, made 272 x 144 by repeating them."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def __call__(self, key: str) -> Any:
        coded = self.library(key)

        class Frames:
            def __len__(self) -> int:
                return len(coded)

            def __getitem__(self, index: int) -> NDArray[np.uint8]:
                return np.tile(coded[index], (3, 3, 1))[:144, :272]

            def close(self) -> None:
                coded.close()

        return Frames()


def test_a_file_that_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    class Failing:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> NDArray[np.uint8]:
            if index == 5:
                raise KeyboardInterrupt
            return np.zeros((128, 256, 3), np.uint8)

    target = tmp_path / "a.mov"
    target.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_media(target, Failing(), CODECS["prores"], NTSC, {})
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_codec_s_refusal_is_an_error_in_words(tmp_path: Path) -> None:
    class Small:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> NDArray[np.uint8]:
            return np.zeros((16, 16, 3), np.uint8)

    with pytest.raises(RenderError, match="cannot be written"):
        write_media(tmp_path / "a.mov", Small(), CODECS["dnxhr"], NTSC, {})
    assert not list(tmp_path.iterdir())
