"""Takes: several versions of a clip, one of which the film uses; no change of mind renders anything twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_plan import planned, problems

from svi_story.cache import garbage
from svi_story.cache.garbage import Requested
from svi_story.cache.store import Store
from svi_story.engines.animatic import Animatic, AnimaticIdentity
from svi_story.errors import RenderError, TransientError
from svi_story.plan.keys import with_keys
from svi_story.plan.resolve import MOST_SEGMENTS, TAKE_STRIDE
from svi_story.render import runner
from svi_story.render.executor import LocalExecutor, SegmentFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conftest import Ended

    from svi_story.plan.model import FilmPlan, Segment
    from svi_story.render.executor import Result

    Write = Callable[..., Path]
    Run = Callable[..., Ended]
    Events = list[dict[str, Any]]

ANIMATIC = ("--engine", "animatic")
MONTH = 31 * 24 * 3600.0


def clips(*numbers_of_takes: int, **second: Any) -> list[dict[str, Any]]:
    """Short clips with so many takes; the second one with more fields."""
    found: list[dict[str, Any]] = [
        {"prompt": f"Clip {number} is drifting.", "frames": 9, **({"takes": takes} if takes > 1 else {})}
        for number, takes in enumerate(numbers_of_takes, 1)
    ]
    found[1] |= second
    return found


def rendered(svi_story: Run, board: Path, *options: object, code: int = 0) -> Events:
    """The events of a render."""
    ended = svi_story("render", board, *ANIMATIC, "--json", *options)
    assert ended.code == code, ended.err
    return [json.loads(line) for line in ended.out.splitlines()]


def made(events: Events) -> list[tuple[str, int]]:
    """Clip and take of every segment that was rendered, in order."""
    return [(each["clip"], each["take"]) for each in events if each["event"] == "segment_done"]


def names(events: Events, *kinds: str) -> list[str]:
    return [each["event"] for each in events if each["event"] in kinds]


def plan_of(svi_story: Run, board: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(svi_story("plan", board, *ANIMATIC, "--json").out)
    return found


def keys(svi_story: Run, board: Path) -> list[str]:
    (about,) = plan_of(svi_story, board)["boards"]
    return [segment["key"] for clip in about["clips"] for segment in clip["segments"]]


def keyed(board: Path) -> FilmPlan:
    """The plan of an animatic, with keys."""
    return with_keys(planned(board), lambda _name: AnimaticIdentity())


def store_of(board: Path) -> Store:
    return Store(board.parent / "renders/.cache", lambda _event: None)


# What a board means.


def test_takes_differ_by_their_seeds_alone(write_board: Write, svi_story: Run) -> None:
    plain = keys(svi_story, write_board(clips=clips(1, 1, 1)))
    assert keys(svi_story, write_board(clips=clips(1, 3, 1))) == plain, "take 1 is the clip as it was"
    assert keys(svi_story, write_board(clips=clips(1, 3, 1, pick=1))) == plain
    picked = keys(svi_story, write_board(clips=clips(1, 3, 1, pick=3)))
    seeded = keys(svi_story, write_board(clips=clips(1, 1, 1, seed=42 + 2 * TAKE_STRIDE)))
    assert picked == seeded, "nothing but the seed enters a key"
    assert picked[0] == plain[0]
    assert not {*picked[1:]} & {*plain[1:]}, "the next clip continues from the picked take"


def test_every_take_starts_from_the_same_parent(write_board: Write) -> None:
    plan = keyed(write_board(clips=clips(2, 3, 1, pick=2)))
    one, two, three = plan.shots
    assert [take.number for take in two.takes] == [1, 2, 3]
    assert [take.seed - two.takes[0].seed for take in two.takes] == [0, TAKE_STRIDE, 2 * TAKE_STRIDE]
    assert (two.pick, two.seed, two.segments) == (2, two.takes[1].seed, two.takes[1].segments)
    assert {take.segments[0].parent for take in two.takes} == {one.segments[-1].key}
    assert three.segments[0].parent == two.takes[1].segments[-1].key
    assert [(segment.clip, segment.take) for segment in plan.segments] == [
        ("clip-01", 1),
        ("clip-02", 2),
        ("clip-03", 1),
    ]
    others = [("clip-01", 2), ("clip-02", 1), ("clip-02", 3)]
    assert [(segment.clip, segment.take) for segment in plan.other_segments] == others


def test_base_keys_do_not_depend_on_what_is_picked(write_board: Write) -> None:
    first = keyed(write_board(clips=clips(2, 3, 2)))
    bases = [segment.key for segment in first.segments]
    for picks in ((1, 2, 1), (2, 1, 2), (2, 3, 1)):
        some = [clip | {"pick": pick} for clip, pick in zip(clips(2, 3, 2), picks, strict=True)]
        plan = keyed(write_board(clips=some))
        assert [segment.base_key for segment in plan.segments] == bases
        places = {segment.base_key: segment.clip for segment in first.segments}
        assert all(places[segment.base_key] == segment.clip for segment in plan.other_segments)


def test_the_seeds_of_all_takes_are_checked(write_board: Write) -> None:
    (problem,) = problems(write_board(clips=clips(2, 1, seed=TAKE_STRIDE)))
    assert f'clips[1].seed (clip "clip-02"): seed {TAKE_STRIDE} is used by clip clip-01' in problem
    planned(write_board(clips=clips(1, 1, seed=TAKE_STRIDE)))
    (problem,) = problems(write_board(clips=clips(1, 3, seed=2**63 - TAKE_STRIDE - 5)))
    assert "the clip's seeds reach 9223372036855775806" in problem
    planned(write_board(clips=clips(1, 2, seed=2**63 - TAKE_STRIDE - 5)))


def test_the_segments_of_all_takes_count(write_board: Write) -> None:
    short = {"prompt": "Fog is drifting.", "duration": "1h", "takes": 99}
    begin = time.monotonic()
    (problem,) = problems(write_board(clips=[short], engine={"max_frames": 5}))
    assert f"segments with all takes, more than {MOST_SEGMENTS}" in problem
    assert time.monotonic() - begin < 60


# What is rendered, and in which order.


def test_a_director_at_work_renders_nothing_twice(picture: Path, svi_story: Run) -> None:
    others = "".join(f"  - {{prompt: Clip {number} is drifting., frames: 9}}\n" for number in range(3, 7))
    written = f"""\
version: 1 # six clips
reference: {picture.name}
resolution: 96x64
clips:
  - {{prompt: Clip 1 is drifting., frames: 9}}
  - prompt: Clip 2 is drifting. # the one that matters
    frames: 9
    caption: Rain
{others}"""
    board = picture.with_name("board.yaml")
    board.write_text(written)

    def pick(take: int) -> tuple[str, str]:
        """What is picked: the lines that were written, and what is said about it."""
        ended = svi_story("pick", board, 2, take, *ANIMATIC)
        assert ended.code == 0, ended.err
        return re.sub("^.*yaml:", "", ended.out, flags=re.MULTILINE), ended.err

    film = [(f"clip-0{number}", 1) for number in range(1, 7)]
    events = rendered(svi_story, board)
    assert made(events) == film
    done = [(each["clip"], each["take"]) for each in events if each["event"] == "clip_done"]
    assert done == made(events), "`stop` waits for these"
    assert made(rendered(svi_story, board, "--only", 2, "--takes", 3)) == [("clip-02", 2), ("clip-02", 3)]
    lines, about = pick(2)
    assert lines == "9: takes: 2\n10: pick: 2\n"
    assert "clip 2 (clip-02): take 2 is picked; 4 segments to render" in about
    assert len(made(rendered(svi_story, board, "--draft"))) == 6
    follow = film[2:]
    assert made(rendered(svi_story, board)) == follow
    board.write_text(board.read_text().replace("Rain", "Fog"))
    captioned = rendered(svi_story, board)
    assert made(captioned) == []
    assert names(captioned, "film_done") == ["film_done"]
    lines, about = pick(1)
    assert lines == "10: pick: 1\n"
    assert "every segment of the film is rendered already" in about
    assert made(rendered(svi_story, board)) == [], "back to the first take"
    assert pick(2)[0] == "10: pick: 2\n"
    assert made(rendered(svi_story, board)) == []
    assert pick(3)[0] == "9: takes: 3\n10: pick: 3\n"
    assert made(rendered(svi_story, board)) == follow
    assert board.read_text().replace("    takes: 3\n    pick: 3\n", "").replace("Fog", "Rain") == written
    board.write_text(board.read_text().replace("takes: 3", "takes: 5"))
    assert made(rendered(svi_story, board)) == [("clip-02", 4), ("clip-02", 5)]


def test_the_film_is_written_before_other_takes_are_rendered(write_board: Write, svi_story: Run) -> None:
    boards = [
        write_board(f"{name}.yaml", clips=clips(2, 2, seed=seed)) for name, seed in (("a", 7), ("b", 8))
    ]
    told = [json.loads(line) for line in svi_story("render", *boards, *ANIMATIC, "--json").out.splitlines()]
    order = [each["event"] for each in told if each["event"] in ("film_done", "takes_done", "segment_done")]
    done, film, takes = "segment_done", "film_done", "takes_done"
    assert order == [done, done, film, done, film, done, done, takes, done, takes]
    assert [each["take"] for each in told if each["event"] == "segment_done"] == [1, 1, 1, 2, 2, 2]
    assert [each["takes"] for each in told if each["event"] == "board_started"] == [2, 2]


def test_a_finished_film_with_missing_takes_is_not_finished_work(write_board: Write, svi_story: Run) -> None:
    rendered(svi_story, write_board(clips=clips(1, 1, 1)))
    board = write_board(clips=clips(1, 1, 1))
    status = json.loads(svi_story("status", board, *ANIMATIC, "--json").out)["boards"][0]
    assert (status["state"], status["to_render"]) == ("up to date", 0)
    assert made(rendered(svi_story, board, "--takes", 2)) == [(f"clip-0{n}", 2) for n in (1, 2, 3)]
    more = write_board(clips=clips(1, 4, 1))
    status = json.loads(svi_story("status", more, *ANIMATIC, "--json").out)["boards"][0]
    assert (status["state"], status["cached"], status["to_render"]) == ("outdated", 4, 2)
    board = write_board(clips=clips(1, 3, 1))
    about = plan_of(svi_story, board)
    second = about["boards"][0]["clips"][1]
    assert [(take["number"], take["segments"][0]["state"]) for take in second["other_takes"]] == [
        (2, "cached"),
        (3, "to-render"),
    ]
    assert (second["pick"], about["schedule"]["segments"], about["schedule"]["engines"][0]["takes"]) == (
        1,
        1,
        1,
    )
    assert "take 3" in svi_story("plan", board, *ANIMATIC).out
    assert made(rendered(svi_story, board)) == [("clip-02", 3)]
    again = rendered(svi_story, board)
    assert names(again, "run_started", "film_done", "board_started", "takes_done") == [
        "run_started",
        "film_done",
    ]
    assert again[1]["made"] is False


def test_only_writes_a_film_of_each_take(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board(clips=clips(1, 2, 1, pick=2))
    ended = svi_story("render", board, *ANIMATIC, "--only", 2)
    folder = tmp_path / "renders/board.clips"
    wanted = ["renders/board.clips/2-clip-02~take1.mp4", "renders/board.clips/2-clip-02.mp4"]
    assert (ended.code, ended.out.split()) == (0, wanted)
    films = {path.name: path.read_bytes() for path in folder.glob("*.mp4")}
    assert len(films) == 2
    more = rendered(svi_story, board, "--only", 2, "--takes", 3)
    assert made(more) == [("clip-02", 3)]
    assert [
        each["film"].rpartition("/")[2] for each in more if each["event"] == "film_done" and each["made"]
    ] == ["2-clip-02~take3.mp4"]
    assert {name: (folder / name).read_bytes() for name in films} == films, "nothing is written again"
    assert made(rendered(svi_story, board)) == [("clip-03", 1)]


def test_takes_are_not_for_drafts(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=clips(1, 3, pick=2))
    assert made(rendered(svi_story, board, "--draft")) == [("clip-01", 1), ("clip-02", 1)]
    refused = svi_story("render", board, *ANIMATIC, "--draft", "--takes", 2)
    assert (refused.code, "--draft" in refused.err) == (2, True)
    assert svi_story("render", board, *ANIMATIC, "--takes", 100).code == 2
    unknown = svi_story("render", board, *ANIMATIC, "--takes", 2, "--only", "nobody")
    assert (unknown.code, "has no clip nobody" in unknown.err) == (2, True)


def test_force_renders_every_take_again(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=clips(1, 2, 1))
    rendered(svi_story, board)
    assert made(rendered(svi_story, board, "--force", "clip-02")) == [("clip-02", 1), ("clip-02", 2)]
    assert len(made(rendered(svi_story, board, "--force", "all"))) == 4


# When something goes wrong.


def failing(monkeypatch: pytest.MonkeyPatch, *errors: tuple[int, Exception]) -> None:
    """Let takes fail to decode, once each."""
    left = dict(errors)
    real = Animatic.decode

    def decode(engine: Animatic, segment: Any, latents: Any) -> Iterator[Any]:
        if error := left.pop(segment.take, None):
            raise error
        return real(engine, segment, latents)

    monkeypatch.setattr(Animatic, "decode", decode)


def test_a_take_that_fails_stops_neither_film_nor_other_takes(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board(clips=clips(1, 3, 1))
    failing(monkeypatch, (2, RenderError("NaN or Inf in latents")))
    ended = svi_story("render", board, *ANIMATIC)
    assert (ended.code, ended.out) == (1, "renders/board.mp4\n")
    assert "board.yaml: failed: NaN or Inf in latents" in ended.err
    assert made(rendered(svi_story, board)) == [("clip-02", 2)]


def test_a_take_that_fails_before_the_film_is_done_does_not_stop_it(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with several workers."""

    class Hasty(LocalExecutor):
        def render(self, segments: Sequence[Segment], later: Sequence[Segment] = ()) -> Iterator[Result]:
            yield SegmentFailed(later[0], RenderError("NaN or Inf in latents"))
            yield from super().render(segments, later[1:])

    monkeypatch.setattr(runner, "LocalExecutor", Hasty)
    board = write_board(clips=clips(1, 3, 1))
    events = rendered(svi_story, board, code=1)
    assert names(events, "film_done", "board_failed") == ["film_done", "board_failed"]
    assert made(events)[-1] == ("clip-02", 3)


def test_a_take_that_fails_for_now_is_tried_again(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "wait", lambda _seconds: None)
    failing(monkeypatch, (2, TransientError("the disk is away")))
    events = rendered(svi_story, write_board(clips=clips(1, 3, 1)))
    assert Counter(made(events)) == dict.fromkeys(
        [("clip-01", 1), ("clip-02", 1), ("clip-03", 1), ("clip-02", 2), ("clip-02", 3)], 1
    )
    films = [each["made"] for each in events if each["event"] == "film_done"]
    assert films == [True, False], "the film is not joined again"
    assert names(events, "board_delayed", "takes_done") == ["board_delayed", "takes_done"]


@pytest.mark.parametrize("take", [2, 3])
def test_interrupted_between_takes_it_goes_on_with_the_next(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, take: int
) -> None:
    board = write_board(clips=clips(1, 3, 1))
    with monkeypatch.context() as patch:
        failing(patch, (take, KeyboardInterrupt()))  # type: ignore[arg-type]
        ended = svi_story("render", board, *ANIMATIC)
    assert ended.code == 130
    film = (board.parent / "renders/board.mp4").stat()
    again = rendered(svi_story, board)
    assert made(again) == [("clip-02", number) for number in range(take, 4)]
    assert (board.parent / "renders/board.mp4").stat().st_mtime_ns == film.st_mtime_ns


def test_killed_between_takes_it_renders_nothing_twice(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=clips(1, 4, 1))
    command = [sys.executable, "-m", "svi_story", "render", str(board), *ANIMATIC, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    told: Events = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            told.append(json.loads(line))
            if told[-1]["event"] == "segment_done" and told[-1]["take"] == 2:
                process.kill()
        process.wait(60)
    assert process.returncode != 0
    done = made(told)
    film = (board.parent / "renders/board.mp4").stat().st_mtime_ns
    again = made(rendered(svi_story, board))
    assert set(done).isdisjoint(again)
    assert {*done, *again} >= {("clip-01", 1), ("clip-02", 1), ("clip-03", 1), ("clip-02", 2), ("clip-02", 4)}
    assert (board.parent / "renders/board.mp4").stat().st_mtime_ns == film


# What is kept.


def entries(board: Path) -> set[str]:
    return {path.name for path in store_of(board).layout.entries()}


def collected(board: Path, *, takes: bool = False) -> set[str]:
    """The entries that `gc` would delete in a month."""
    found = store_of(board).garbage(time.time() + MONTH, takes=takes)
    return {item.key for item in found if item.path.parent.parent.name == "entries"}


def test_gc_keeps_every_take_that_was_requested_and_what_continued_from_it(
    write_board: Write, svi_story: Run
) -> None:
    for pick in (1, 2, 3):
        rendered(svi_story, write_board(clips=clips(1, 3, 1, pick=pick)))
    rendered(svi_story, write_board(clips=clips(1, 1, 1)), "--only", 2, "--takes", 4)
    board = write_board(clips=clips(1, 1, 1))
    rendered(svi_story, board)
    assert len(entries(board)) == 1 + 4 + 3
    assert collected(board) == set()
    captioned = write_board(clips=clips(1, 1, 1, caption="Rain"))
    rendered(svi_story, captioned)
    assert collected(board) == set(), "an edit of the cut alone keeps them"
    film = set(keys(svi_story, board))
    assert len(collected(board, takes=True)) == 8 - 3 - 3, "their films use takes 2 to 4"
    shutil.rmtree(board.parent / "renders/board.clips")
    assert collected(board) == set()
    assert collected(board, takes=True) == entries(board) - film
    last = clips(1, 1, 1)
    last[2]["prompt"] = "The sun is rising."
    rendered(svi_story, write_board(clips=last))
    assert len(collected(board)) == 3, "clips 3 of the old prompt cannot come back by picks alone"


def test_gc_takes_them_only_when_told(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board(clips=clips(1, 2))
    rendered(svi_story, board)
    soon = time.time() + MONTH
    monkeypatch.setattr(time, "time", lambda: soon)
    told = svi_story("cache", "gc", "--yes")
    assert (told.code, len(entries(board))) == (0, 3)
    assert "for takes that no film uses; svi-story cache gc --takes lets them go" in told.err
    listed = json.loads(svi_story("cache", "ls", "--json").out)
    assert [item["in_use"] for item in listed if item["for_takes"]] == [True]
    assert svi_story("cache", "gc").err.splitlines()[0] == "nothing would be deleted"
    hint = svi_story("cache", "gc", "--takes").err.splitlines()[0]
    assert hint.endswith("would be deleted, with svi-story cache gc --takes --yes")
    assert svi_story("cache", "gc", "--yes", "--takes").code == 0
    assert len(entries(board)) == 2
    assert made(rendered(svi_story, board)) == [("clip-02", 2)]


def key(number: int) -> str:
    return f"{number:064x}"


def test_the_list_of_what_was_requested_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "MOST_REQUESTED", 5)
    store, film, board = Store(tmp_path / "c", print), tmp_path / "f.mp4", tmp_path / "b.yaml"
    for number in range(1, 10):
        requested = [Requested(key(0), key(0), 1), Requested(key(1), key(number), 1)]
        store.remember_film(film, board, [key(0), key(number)], None, requested)
    assert [each.key for each in store.requested(film)] == [key(6), key(7), key(8), key(0), key(9)]


def test_a_preview_with_another_engine_lets_no_take_go(tmp_path: Path) -> None:
    store, film, board = Store(tmp_path / "c", print), tmp_path / "f.mp4", tmp_path / "b.yaml"

    def remember(settings: str, *numbers: int) -> set[str]:
        requested = [Requested(key(number), key(number), 1, settings) for number in numbers]
        store.remember_film(film, board, [each.key for each in requested], None, requested)
        return {each.key for each in store.requested(film)}

    assert remember("svi", 1, 2) == set(), "there is nothing besides the film's own"
    assert remember("animatic", 3) == {key(1), key(2), key(3)}
    assert remember("animatic", 4) == {key(1), key(2), key(4)}, "an edit lets go what has the same settings"
    assert remember("svi", 2, 5) == {key(4), key(2), key(5)}


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_picked_in_whatever_order_everything_requested_stays(
    write_board: Write, tmp_path_factory: pytest.TempPathFactory, history: list[list[tuple[int, int]]]
) -> None:
    store = Store(tmp_path_factory.mktemp("cache"), print)
    requested: set[str] = set()
    board = Path("board.yaml")
    for state in history:
        some = [
            clip | {"takes": max(takes, pick), "pick": pick}
            for clip, (takes, pick) in zip(clips(1, 1, 1), state, strict=True)
        ]
        board = write_board(clips=some)
        plan = keyed(board)
        every = [*plan.segments, *plan.other_segments]
        requested |= {segment.key for segment in every}
        store.remember_film(
            board.with_suffix(".mp4"),
            board,
            [segment.key for segment in plan.segments],
            None,
            [Requested(segment.base_key, segment.key, segment.take, "") for segment in every],
        )
        assert requested <= garbage.keys_in_use(store.layout, print).keys
        assert {segment.key for segment in plan.segments} == {
            *garbage.keys_in_use(store.layout, print, takes=False).keys
        }


# What is said.


def test_takes_lists_every_take(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board(clips=clips(1, 2, 1, pick=2))
    fresh = json.loads(svi_story("takes", board, *ANIMATIC, "--json").out)
    assert [[take["state"] for take in clip["takes"]] for clip in fresh["clips"]] == [
        ["to-render"],
        ["to-render", "to-render"],
        ["to-render"],
    ]
    rendered(svi_story, board)
    rendered(svi_story, board, "--only", 2, "--takes", 3)
    (clip,) = json.loads(svi_story("takes", board, "clip-02", *ANIMATIC, "--json").out)["clips"]
    assert [(take["number"], take["picked"], take["state"]) for take in clip["takes"]] == [
        (1, False, "cached"),
        (2, True, "cached"),
        (3, False, "cached"),
    ], "a take that only the command line asked for is listed too"
    assert [take["file"].rpartition("/")[2] for take in clip["takes"]] == [
        "2-clip-02~take1.mp4",
        "2-clip-02.mp4",
        "2-clip-02~take3.mp4",
    ]
    assert all(take["seconds"] > 0 for take in clip["takes"])
    assert (
        clip["takes"][2]["command"] == "svi-story pick board.yaml clip-02 3"
        or str(board) in clip["takes"][2]["command"]
    )
    third = write_board(clips=clips(1, 3, 1, pick=3))
    (clip,) = json.loads(svi_story("takes", third, "2", *ANIMATIC, "--json").out)["clips"]
    assert [take["file"].rpartition("/")[2] for take in clip["takes"]] == [
        "2-clip-02~take1.mp4",
        "2-clip-02.mp4",
        "2-clip-02~take3.mp4",
    ], "files are found by what they show"
    text = svi_story("takes", board, *ANIMATIC)
    assert "(picked)" in text.out
    assert "to watch them" not in text.err
    unknown = svi_story("takes", board, "nobody", *ANIMATIC)
    assert (unknown.code, "has no clip nobody" in unknown.err) == (2, True)


def test_takes_says_how_to_watch_them(write_board: Write, svi_story: Run) -> None:
    board = write_board(clips=clips(1, 2))
    text = svi_story("takes", board, *ANIMATIC)
    assert f"svi-story render {board} --only clip-02 --takes 2 --engine animatic" in text.err
    many = svi_story("takes", write_board(clips=clips(*[2] * 40)), *ANIMATIC).err
    assert many.count("to watch them") < 10
    assert f"in the same way for {40 - many.count('to watch them')} more clips" in many
    edited = write_board(clips=clips(1, 1, prompt="The sun is rising."))
    (_, clip) = json.loads(svi_story("takes", edited, *ANIMATIC, "--json").out)["clips"]
    assert len(clip["takes"]) == 1


def test_why_explains_another_pick(write_board: Write, svi_story: Run) -> None:
    rendered(svi_story, write_board(clips=clips(1, 1, 1)))

    def why(**second: Any) -> list[str]:
        board = write_board(clips=clips(1, 1, 1, **second))
        ended = svi_story("plan", board, *ANIMATIC, "--json", "--why")
        reasons: list[str] = json.loads(ended.out)["boards"][0]["why"]
        return reasons

    assert why(takes=3) == ["takes of clip 2 (clip-02) changed from 1 to 3"]
    assert why(takes=3, pick=2) == [
        "clip 2 (clip-02): pick changed from 1 to 2; clip 3 follows it",
        "takes of clip 2 (clip-02) changed from 1 to 3",
    ]


def test_the_record_lists_takes(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    rendered(svi_story, write_board(clips=clips(1, 3, pick=2)))
    first, second = json.loads((tmp_path / "renders/board.json").read_text("utf-8"))["clips"]
    assert (first["pick"], first["other_takes"]) == (1, [])
    assert (second["pick"], second["seed"]) == (2, 42 + TAKE_STRIDE)
    assert [(take["number"], take["seed"]) for take in second["other_takes"]] == [
        (1, 42),
        (3, 42 + 2 * TAKE_STRIDE),
    ]
    assert all(store_of(tmp_path / "b").entry(key) for take in second["other_takes"] for key in take["keys"])
