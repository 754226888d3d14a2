"""What a film tells about itself, and what the record beside it holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
from cut_tracks import texts, top_boxes, xmp_of
from svi_support import MODELS
from test_svi_cli import FLAGS, reference_board
from test_xmp import properties

from svi_story.cache.entry import Entry
from svi_story.cut.extras import IPTC, OWN, TRAINED, XMP, Chapter, Cue, extras_of
from svi_story.enginespec import EngineOptions
from svi_story.plan.diff import describe_film
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import with_keys
from svi_story.plan.resolve import plan_film
from svi_story.render.jobs import Job, Place
from svi_story.render.record import is_up_to_date, read_record, write_record
from svi_story.settings import load_settings
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import Ended

    from svi_story.enginespec.sampling import Lora
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
HOSTILE = 'Fog & <rain> "]]>" \U0001f327'
RANGES = {"clip-01": (4, 17), "clip-02": (17, 29), "clip-03": (29, 41)}


class Hashed:
    """An identity that hashes files, as SVI's does."""

    name, revision = "svi", 7

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        used = [lora for lora in segment.loras if lora.high or lora.low]
        loras: list[Json] = [{"sha256": "d0", "high": 1.0, "low": 0.0}, *map(hashed, used)]
        return {"prompt": segment.prompt, "weights": {"vae": ["a1"]}, "loras": loras}


def hashed(lora: Lora) -> Json:
    return {"sha256": f"{lora.path.name}!", "high": lora.high, "low": lora.low}


def job_of(board: Path, engine: str = "svi") -> Job:
    plan = plan_film(load(board), Fingerprints(board.with_name("memo")), engine)
    place = Place(board, board.with_suffix(".mp4"), load_settings(board.parent), board.parent)
    return Job(place, with_keys(plan, lambda _engine: Hashed()), EngineOptions())


def facts(packet: bytes) -> dict[str, str]:
    return {name.removeprefix(f"{{{OWN}}}"): value for name, value in properties(packet).items()}


def test_a_film_of_svi_is_labelled(write_board: Write) -> None:
    board = write_board(title=HOSTILE)
    told = facts(extras_of(job_of(board).plan, RANGES).xmp)
    assert told[f"{{{IPTC}}}DigitalSourceType"] == TRAINED
    assert told[f"{{{IPTC}}}AISystemUsed"] == "Stable Video Infinity 2.0 (Wan 2.2 I2V A14B)"
    assert told["title"] == HOSTILE
    assert told["storyboard"] == board.read_text("utf-8")
    assert told["storyboardSha256"] == hashlib.sha256(board.read_bytes()).hexdigest()
    assert (told["engine"], told["engineRevision"]) == ("svi", "7")
    assert json.loads(told["modelFiles"]) == [
        {"weights": {"vae": ["a1"]}, "loras": [{"sha256": "d0", "high": 1.0, "low": 0.0}]}
    ]


def test_an_animatic_is_not_labelled(write_board: Write) -> None:
    told = facts(extras_of(job_of(write_board(), "animatic").plan, RANGES).xmp)
    assert not any(name.startswith(f"{{{IPTC}}}") for name in told)
    assert b"trainedAlgorithmicMedia" not in extras_of(job_of(write_board(), "animatic").plan, RANGES).xmp


def test_chapters_are_the_clips(write_board: Write) -> None:
    long = "A cat " + "walks along the wall and then " * 9
    board = write_board(
        title="Fog", clips=[{"prompt": "A  cat\nsits."}, {"prompt": long}, {"prompt": "猫" * 99}]
    )
    assert extras_of(job_of(board).plan, RANGES).chapters == (
        Chapter("Fog", 0, 4),
        Chapter("clip-01: A cat sits.", 4, 17),
        Chapter("clip-02: A cat walks along the wall and then walks along the wall…", 17, 29),
        Chapter("clip-03: " + "猫" * 60 + "…", 29, 41),
    )
    eaten = {"clip-01": (0, 9), "clip-03": (9, 12)}
    assert [chapter.start for chapter in extras_of(job_of(board).plan, eaten).chapters] == [0, 9]


@pytest.mark.parametrize(
    ("how", "soft", "shown"), [("burn", 0, False), ("srt", 2, True), ("both", 2, False), ("off", 0, True)]
)
def test_captions(write_board: Write, how: str, soft: int, shown: bool) -> None:
    clips = [{"prompt": "a cat", "caption": "one"}, {"prompt": "b"}, {"prompt": "c", "caption": "three"}]
    extras = extras_of(job_of(write_board(cut={"captions": how}, clips=clips)).plan, RANGES)
    assert extras.captions == (Cue("one", 0, 13), Cue("three", 25, 37))[:soft]
    assert extras.captions_on is shown


def test_the_identity_holds_what_the_film_tells(write_board: Write) -> None:
    extras = extras_of(job_of(write_board()).plan, RANGES)
    others = [
        replace(extras, metadata={}),
        replace(extras, chapters=()),
        replace(extras, captions=(Cue("x", 0, 1),)),
        replace(extras, captions_on=not extras.captions_on),
        replace(extras, xmp=b""),
    ]
    identities = [json.dumps(each.identity()) for each in (extras, *others)]
    assert len(set(identities)) == len(identities)
    assert extras_of(job_of(write_board()).plan, RANGES) == extras
    assert b"202" not in extras.xmp.replace(b"2008-02-29", b"")  # no date of today


# --- through the command line ---


@pytest.fixture
def rendered(write_board: Write, svi_story: Run) -> tuple[Path, Path, dict[str, Any]]:
    """A board, its film and its record."""
    clips = [
        {"prompt": "A cat sits.", "id": "window", "caption": "Rain"},
        {"prompt": "It runs.", "transition": {"fade": "0.4s"}},
        {"prompt": "It sleeps.", "transition": {"dip": "0.4s"}},
    ]
    cut = {"captions": "both", "title_card": {"text": HOSTILE, "duration": "1s"}, "end_card": "The end"}
    board = write_board(title=HOSTILE, clips=clips, cut=cut)
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0, ended.err
    film = board.parent / "renders/board.mp4"
    return board, film, json.loads(film.with_suffix(".json").read_text("utf-8"))


def test_the_film_tells_all(rendered: tuple[Path, Path, dict[str, Any]]) -> None:
    board, film, record = rendered
    kinds = [box.kind for box in top_boxes(film)]
    assert kinds.index(b"moov") < kinds.index(b"mdat") < kinds.index(b"uuid")
    told = facts(xmp_of(film))
    assert told["storyboard"] == record["storyboard"] == board.read_text("utf-8")
    assert told[f"{{{XMP}}}CreatorTool"].startswith("svi-story ")
    with av.open(str(film)) as container:
        assert container.metadata["title"] == HOSTILE
        about = json.loads(container.metadata["comment"])
        found = container.chapters()
        at = [chapter["start"] * (chapter["time_base"] or 0) for chapter in found]
    assert about["storyboard_sha256"] == record["board_sha256"] == told["storyboardSha256"]
    assert [chapter["metadata"]["title"] for chapter in found] == [
        HOSTILE,
        "window: A cat sits.",
        "clip-02: It runs.",
        "clip-03: It sleeps.",
        "The end",
    ]
    assert at == [0, 1, 1 + Fraction(7, 15), 1 + Fraction(20, 15), Fraction(16, 5)]
    assert texts(film)[-1] == (Fraction(1), at[2], "Rain")


def test_the_record_holds_all_to_make_it_again(rendered: tuple[Path, Path, dict[str, Any]]) -> None:
    board, film, record = rendered
    again = board.with_name("again.yaml")
    again.write_text(record["storyboard"], "utf-8")
    assert plan_film(load(again), Fingerprints(board.with_name("memo"))).frames == record["frames"]
    (reference,) = record["references"]
    image = board.parent / reference["path"]
    assert reference["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert (len(reference["pixels"]), reference["fit"]) == (64, "crop")
    cut = record["cut"]
    assert (cut["codec"], cut["crf"], cut["preset"], cut["captions"]) == ("h264", 18, "medium", "both")
    assert cut["title_card"] == {"text": HOSTILE, "frames": 15}
    assert [clip["finish"]["caption"] for clip in record["clips"]] == ["Rain", "", ""]
    assert [(clip["fade"], clip["dip"]) for clip in record["clips"]] == [(0, 0), (6, 0), (0, 6)]
    segments = [segment for clip in record["clips"] for segment in clip["segments"]]
    assert all(segment["seconds"]["decoding"] >= 0 for segment in segments)
    assert {segment["maker"] for segment in segments} == {0}
    assert set(record["makers"][0]["versions"]) >= {"svi-story", "av", "numpy"}
    assert record["sha256"] == hashlib.sha256(film.read_bytes()).hexdigest()


def test_recordings_and_loras_are_in_the_record(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    voice = Path(__file__).parent / "boards/sounds/voice.wav"
    (tmp_path / "one.wav").write_bytes(voice.read_bytes())
    (tmp_path / "style.safetensors").touch()
    board = write_board(
        cut={"audio": {"path": "one.wav", "volume": 0.5}},
        clips=[
            {"prompt": "A cat.", "voice": "one.wav", "loras": [{"path": "style.safetensors", "low": 0.5}]}
        ],
    )
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "renders/board.json").read_text("utf-8"))
    digest = hashlib.sha256(voice.read_bytes()).hexdigest()
    music = record["cut"]["music"]
    assert (music["path"], music["sha256"], music["volume"]) == ("one.wav", digest, 0.5)
    (clip,) = record["clips"]
    assert clip["finish"]["voices"][0]["sha256"] == digest
    assert [(lora["path"], lora["low"], lora["sha256"]) for lora in clip["loras"]] == [
        ("style.safetensors", 0.5, None)  # an animatic uses none
    ]


def test_the_record_tells_who_made_what(write_board: Write, tmp_path: Path) -> None:
    """Two clips by one machine, one by another; LoRAs by path and hash, behind those of the preset."""
    loras = [{"path": "../style.safetensors", "low": 0.5}, {"path": "off.safetensors", "high": 0, "low": 0}]
    clips = [{"prompt": "a"}, {"prompt": "b", "loras": loras}, {"prompt": "c"}]
    job = job_of(write_board(clips=clips))
    job.place.film.write_bytes(b"film")
    machines = [{"torch": "2.9", "device": "H200"}, {"torch": "2.8"}, {"torch": "2.9", "device": "H200"}]
    entries = {}
    for segment, machine in zip(job.segments, machines, strict=True):
        notes: dict[str, Json] = {
            "versions": {"svi-story": "1"},
            "environment": {**machine},
            "sampling_seconds": 2.5,
            "decoding_seconds": 1,
        }
        entries[segment.key] = Entry(segment.key, tmp_path, {"notes": notes})
    write_record(job, "recipe", entries, captions=())
    record = json.loads(job.place.film.with_suffix(".json").read_text("utf-8"))
    assert [maker["environment"] for maker in record["makers"]] == machines[:2]
    segments = [segment for clip in record["clips"] for segment in clip["segments"]]
    assert [segment["maker"] for segment in segments] == [0, 1, 0]
    assert segments[0]["seconds"] == {"sampling": 2.5, "decoding": 1}
    assert record["clips"][1]["loras"] == [
        {"path": "../style.safetensors", "high": 1.0, "low": 0.5, "sha256": "style.safetensors!"},
        {"path": "off.safetensors", "high": 0, "low": 0, "sha256": None},
    ]
    read = read_record(job.place.film)
    assert read is not None
    assert read.made == describe_film(job.plan)
    assert is_up_to_date(job.place.film, "recipe")


def test_a_film_of_tiny_weights(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    """The engine itself: label, weights' hashes and the machine are where they belong."""
    board = reference_board(write_board, "2.0", clips=[{"prompt": "The street at night.", "frames": 5}])
    ended = svi_story("render", board, *FLAGS)
    assert ended.code == 0, ended.err
    told = facts(xmp_of(tmp_path / "renders/board.mp4"))
    assert told[f"{{{IPTC}}}DigitalSourceType"] == TRAINED
    (files,) = json.loads(told["modelFiles"])
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in MODELS.rglob("*") if path.is_file()}
    assert {digest for model in files["weights"].values() for digest in model} <= hashes
    assert set(files["svi_loras"].values()) <= hashes
    record = json.loads((tmp_path / "renders/board.json").read_text("utf-8"))
    (maker,) = record["makers"]
    assert set(maker["environment"]) >= {"torch", "diffusers", "transformers", "device", "attention"}
    (segment,) = record["clips"][0]["segments"]
    assert segment["seconds"]["sampling"] > 0
    assert segment["inputs"]["inputs"]["weights"] == files["weights"]
    assert record["clips"][0]["negative_prompt"]


def test_a_second_render_changes_nothing(rendered: tuple[Path, Path, dict[str, Any]], svi_story: Run) -> None:
    board, film, _ = rendered
    content = film.read_bytes()
    assert (
        json.loads(svi_story("status", board, *ANIMATIC, "--json").out)["boards"][0]["state"] == "up to date"
    )
    film.unlink()
    assert svi_story("render", board, *ANIMATIC).code == 0
    assert film.read_bytes() == content
