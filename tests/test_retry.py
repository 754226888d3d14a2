"""What may pass by itself is tried again; what cannot is told at once."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sound_files import noise, write_sound

from svi_story.cache.store import Store
from svi_story.engines.animatic import Animatic
from svi_story.errors import RenderError, TransientError
from svi_story.files import TRANSIENT, disk, unwritable
from svi_story.render import runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]
    Events = list[dict[str, Any]]

ANIMATIC = ("--engine", "animatic", "--json")


class Waits:
    """Notes every wait; what is to happen meanwhile happens."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.meanwhile()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(runner, "wait", waits)
    return waits


@pytest.fixture
def boards(write_board: Write) -> Path:
    for name in "ab":
        clips = [{"prompt": f"{name} is drifting {clip}."} for clip in range(2)]
        write_board(f"storyboards/{name}.yaml", reference="../anchor.png", clips=clips, seed=1000 * ord(name))
    return write_board().parent / "storyboards"


class Disk:
    """A disk that is full, or lost, wherever a path holds a word."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.word = ""
        self.error = errno.ENOSPC
        real = os.replace

        def replace(source: Any, target: Any) -> None:
            if self.word and self.word in str(target):
                raise OSError(self.error, os.strerror(self.error))
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)

    def free(self) -> None:
        """Somebody cleans up."""
        self.word = ""


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def events(ended: Ended) -> Events:
    return [json.loads(line) for line in ended.out.splitlines()]


def names(told: Events, kind: str) -> Counter[str]:
    found = [each["board"].rsplit("/", 1)[-1][0] for each in told if each["event"] == kind]
    return Counter(found)


@pytest.mark.parametrize("word", ["latents.safetensors", "piece.mp4", "b.mp4", "b.json"])
def test_a_full_disk_that_is_freed_costs_a_wait_and_nothing_twice(
    boards: Path, svi_story: Run, waits: Waits, full: Disk, word: str
) -> None:
    full.word, waits.meanwhile = word, full.free
    ended = svi_story("render", boards, *ANIMATIC)
    assert ended.code == 0, ended.err
    told = events(ended)
    assert waits.seconds == [5]
    assert names(told, "board_delayed")["b"] == 1
    assert names(told, "film_done") == {"a": 1, "b": 1}
    assert names(told, "board_failed") == {}
    made = Counter(each["key"] for each in told if each["event"] == "segment_done")
    assert set(made.values()) == {1}
    pieces = Counter((each["board"], each["clip"]) for each in told if each["event"] == "piece_done")
    assert len(pieces) == 4
    assert set(pieces.values()) == {1}
    calm = svi_story("render", boards, *ANIMATIC, "-o", "calm", "--cache", "calm/cache")
    assert calm.code == 0
    for film in "ab":
        one, other = (boards.parent / folder / f"{film}.mp4" for folder in ("renders", "calm"))
        assert one.read_bytes() == other.read_bytes()


def test_what_does_not_pass_is_given_up_after_every_wait(
    boards: Path, svi_story: Run, waits: Waits, full: Disk
) -> None:
    full.word = "b.mp4"
    ended = svi_story("render", boards, *ANIMATIC)
    assert ended.code == 1
    told = events(ended)
    assert waits.seconds == [5, 20]
    assert names(told, "film_done") == {"a": 1}
    assert names(told, "board_failed") == {"b": 1}
    (message,) = (each["message"] for each in told if each["event"] == "board_failed")
    assert "No space left on device; free some space" in message
    assert "boards that failed for now: 1; trying again in 20 s" in ended.out
    assert sum(each["event"] == "segment_done" for each in told) == 4


def test_retries_are_an_option(boards: Path, svi_story: Run, waits: Waits, full: Disk) -> None:
    full.word = "b.mp4"
    none = svi_story("render", boards, *ANIMATIC, "--retries", 0)
    assert (none.code, waits.seconds) == (1, [])
    assert names(events(none), "board_delayed") == {}
    assert svi_story("render", boards, *ANIMATIC, "--retries", 1).code == 1
    assert waits.seconds == [5]
    assert svi_story("render", boards, *ANIMATIC, "--retries", -1).code == 2


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.EFBIG])
def test_what_cannot_pass_is_told_at_once(
    boards: Path, svi_story: Run, waits: Waits, full: Disk, error: int
) -> None:
    full.word, full.error = "latents.safetensors", error
    ended = svi_story("render", boards, *ANIMATIC)
    assert (ended.code, waits.seconds) == (1, [])


def test_a_bug_is_not_tried_again_and_keeps_its_traceback(
    boards: Path, svi_story: Run, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Animatic.decode

    def broken(engine: Animatic, segment: Any, latents: Any) -> Iterator[Any]:
        if segment.prompt.startswith("a is drifting 1"):
            raise ZeroDivisionError("on purpose")
        return real(engine, segment, latents)

    monkeypatch.setattr(Animatic, "decode", broken)
    ended = svi_story("render", boards, *ANIMATIC)
    assert (ended.code, waits.seconds) == (3, [])
    (message,) = (each["message"] for each in events(ended) if each["event"] == "board_failed")
    assert message.startswith("Traceback")
    assert "in broken" in message
    assert names(events(ended), "film_done") == {"b": 1}


def test_an_engine_that_cannot_start_for_now_is_started_later(
    boards: Path, svi_story: Run, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[bool] = []
    real = Animatic.__enter__

    def enter(engine: Animatic) -> Animatic:
        entered.append(bool(waits.seconds))
        if not waits.seconds:
            raise TransientError("somebody else uses the GPU")
        return real(engine)

    monkeypatch.setattr(Animatic, "__enter__", enter)
    ended = svi_story("render", boards, *ANIMATIC)
    assert ended.code == 0, ended.err
    assert entered == [False, True]  # once a round, not once a board
    assert names(events(ended), "board_delayed") == {"a": 1, "b": 1}


def test_an_interrupt_ends_the_wait(boards: Path, svi_story: Run, waits: Waits, full: Disk) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    full.word, waits.meanwhile = "b.mp4", interrupt
    ended = svi_story("render", boards, *ANIMATIC)
    assert ended.code == 130
    assert "interrupted; what was done is kept" in ended.err


def test_what_was_forced_is_not_forced_again(boards: Path, svi_story: Run, waits: Waits, full: Disk) -> None:
    assert svi_story("render", boards, *ANIMATIC).code == 0
    full.word, waits.meanwhile = "b.mp4", full.free
    ended = svi_story("render", boards, *ANIMATIC, "--force", "all")
    assert ended.code == 0, ended.err
    made = Counter(each["key"] for each in events(ended) if each["event"] == "segment_done")
    assert len(made) == 4
    assert set(made.values()) == {1}


def test_what_was_to_be_forced_is_forced_later(
    boards: Path, svi_story: Run, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk refuses while entries are set aside."""
    assert svi_story("render", boards, *ANIMATIC).code == 0
    real, calls = Store.quarantine, list[str]()

    def quarantine(store: Store, key: str, reason: str) -> bool:
        calls.append(key)
        if len(calls) == 2:
            raise TransientError("full")
        return real(store, key, reason)

    monkeypatch.setattr(Store, "quarantine", quarantine)
    ended = svi_story("render", boards, *ANIMATIC, "--force", "all")
    assert (ended.code, waits.seconds) == (0, [5])
    made = Counter(each["key"] for each in events(ended) if each["event"] == "segment_done")
    assert len(made) == 4
    assert set(made.values()) == {1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS])
def test_errors_of_the_disk_pass_or_do_not(number: int, tmp_path: Path) -> None:
    kind = TransientError if number in TRANSIENT else RenderError
    with pytest.raises(RenderError) as raised, disk(tmp_path, "writing"):
        raise OSError(number, os.strerror(number))
    assert type(raised.value) is kind
    assert type(unwritable(tmp_path, f"ffmpeg ended ({os.strerror(number)})")) is kind


@pytest.mark.parametrize("full_for", [1, 3])
def test_pieces_and_sound_are_reported_once_they_are_in_the_cache(
    write_board: Write, svi_story: Run, waits: Waits, monkeypatch: pytest.MonkeyPatch, full_for: int
) -> None:
    """What was made and could not be stored is made again. The sound is stored first."""
    write_sound(Path("music.wav"), noise(48_000))
    clips = [{"prompt": f"The boat is drifting {clip}."} for clip in range(2)]
    board = write_board(clips=clips, cut={"audio": "music.wav"})
    stored, real = 0, os.replace

    def replace(source: Any, target: Any) -> None:
        nonlocal stored
        stored += str(target).endswith("piece.json")
        if str(target).endswith("piece.json") and stored == full_for:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 0, ended.err
    assert waits.seconds
    events = [json.loads(line) for line in ended.out.splitlines()]
    made = Counter(
        event.get("clip", "") for event in events if event["event"] in ("piece_done", "sound_done")
    )
    assert made == {"": 1, "clip-01": 1, "clip-02": 1}
