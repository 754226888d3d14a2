"""What a plan costs: counted exactly, and timed by what was rendered here, never guessed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import svi_support as support
from fake_engine import PHASES, film
from hypothesis import given
from hypothesis import strategies as st

from svi_story.engines import ModelSizes, implementation_of
from svi_story.enginespec import EngineOptions
from svi_story.enginespec.sampling import Guidance
from svi_story.events import EngineSettled, ModelLoaded, ModelMoved, PhaseDone, SegmentDone
from svi_story.render.cost import (
    ASSEMBLY,
    FILE,
    KEPT,
    Batch,
    Calibration,
    Cost,
    Setting,
    Timed,
    Timings,
    WorkKind,
    cost_of,
)
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.events import Event

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

RUNGS = ("resident", "offload", "stream")
HERE = Setting("fake", "gpu", "bfloat16", "flash", "offload")
OPTIONS = ("--models", support.MODELS, "--dtype", "float32")
SIZE = "32x16"


def cost(*chains: str, done: int = 0, calibration: Calibration | None = None) -> Cost:
    """Of films of one chain each; `done` segments of each are there."""
    films = [film([chain]) for chain in chains]
    missing = frozenset(segment.key for each in films for segment in each[done:])
    batch = Batch(
        "fake", films, missing, lambda _: PHASES, ModelSizes(("high", "low"), expert=100, blocks=90)
    )
    known = calibration or Calibration()
    return cost_of(batch, RUNGS, known, known.newest("fake", "bfloat16", "auto"))


def numbers(found: Cost) -> dict[str, tuple[int, int]]:
    return {mode: (moves.loads, moves.bytes) for mode, moves in found.moves.items()}


def test_passes_and_moves_are_counted() -> None:
    found = cost("a1", "b12", "c")
    assert (found.segments, found.waves) == (6, 3)
    assert found.forwards == {"high": 24, "low": 24}
    assert numbers(found) == {
        "resident": (2, 200),
        "offload": (6, 600),  # two for each wave
        "stream": (2, 20 + 48 * 90),  # what is not in blocks, once; the blocks in every pass
    }


def test_what_is_there_and_what_is_shared_costs_nothing() -> None:
    shared = cost("ab", "ac")
    assert (shared.segments, shared.forwards) == (3, {"high": 12, "low": 12})
    begun = cost("ab", "ac", done=1)
    assert (begun.segments, begun.waves, numbers(begun)["offload"]) == (2, 1, (2, 200))
    done = cost("ab", done=2)
    assert (done.segments, done.waves, done.forwards, done.seconds) == (0, 0, {}, 0)
    assert numbers(done)["stream"] == (0, 0)


def test_time_is_the_sum_of_what_was_timed_here() -> None:
    times = {"vae": 1.0, "high": 2.0, "low": 3.0, "decode": 4.0}
    known = Calibration()
    for work, seconds in times.items():
        known.add(HERE, WorkKind(work, SIZE, 5), seconds)
    found = cost("a1", "b1", calibration=known)
    assert found.seconds is None
    assert found.unknown == ("load high", "move high", "load low", "move low")
    known.add(HERE, WorkKind("load high"), 100.0)
    known.add(HERE, WorkKind("load low"), 100.0)
    known.add(HERE, WorkKind("move low"), 10.0)
    found = cost("a1", "b1", calibration=known)
    assert found.seconds == 4 * (1 + 4 * 2 + 4 * 3 + 4) + (100 + 100) + (100 + 10)
    assert found.unknown == ()
    assert found.setting == HERE


def test_decoding_costs_no_time_beside_the_sampling() -> None:
    known, overlapping = Calibration(), replace(HERE, memory="resident", overlap=True)
    times = {"vae": 1.0, "high": 2.0, "low": 3.0, "decode": 4.0, "store": 0.5}
    for work, seconds in times.items():
        known.add(overlapping, WorkKind(work, SIZE, 5), seconds)
    for work in ("load high", "load low"):
        known.add(overlapping, WorkKind(work), 100.0)
    sampling = 1 + 4 * 2 + 4 * 3
    assert cost("a", "b", "c", calibration=known).seconds == 3 * sampling + 4 + 0.5 + 200
    assert cost("abc", calibration=known).seconds == 3 * (sampling + 4 + 0.5) + 200


def test_what_was_never_timed_is_unknown() -> None:
    found = cost("a")
    assert found.seconds is None
    assert found.unknown == tuple(f"{work} at {SIZE}, 5 frames" for work in ("vae", "high", "low", "decode"))
    other = Calibration()
    other.add(HERE, WorkKind("high", "64x64", 5), 1.0)
    assert cost("a", calibration=other).seconds is None


def test_the_setting_used_last_counts() -> None:
    known = Calibration()
    kind = WorkKind("high", SIZE, 5)
    for mode in ("resident", "offload", "resident"):
        known.add(Setting("svi", "gpu", "bfloat16", "flash", mode), kind, 1.0)
    newest = known.newest("svi", "bfloat16", "auto")
    assert newest is not None
    assert newest.memory == "resident"
    asked = known.newest("svi", "bfloat16", "offload")
    assert asked is not None
    assert asked.memory == "offload"
    assert known.newest("svi", "float32", "auto") is None
    assert known.newest("animatic", "bfloat16", "auto") is None


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=40))
def test_a_disturbed_time_moves_nothing(times: list[float]) -> None:
    known, kind = Calibration(), WorkKind("high", SIZE, 5)
    for seconds in times:
        known.add(HERE, kind, seconds)
    found = known.seconds(HERE, kind)
    assert found is not None
    assert min(times[-KEPT:]) <= found <= max(times[-KEPT:])
    assert len(known.times[HERE][kind]) == min(len(times), KEPT)


BOARD = Path("a.yaml")
TASKS = film(["a1"])
SEGMENTS = {(BOARD, segment.clip, 1, 0): Timed("fake", segment, lambda: PHASES) for segment in TASKS}


def listen(*told: Event) -> Calibration:
    """What is known after a render that told this."""
    timings = Timings(SEGMENTS)
    for event in told:
        timings(event)
    timings.learnt.save()
    return Calibration.load()


def test_a_render_teaches_seconds_for_each_pass_without_the_loading() -> None:
    settled = EngineSettled("fake", "gpu", "bfloat16", "flash", "offload")
    known = listen(
        settled,
        PhaseDone(BOARD, "a", 0, "vae", 0, 0.5),
        ModelLoaded("high", 100, 7.0),
        PhaseDone(BOARD, "a", 0, "high", 2, 11.0),
        ModelMoved("low", 100, 1.0),
        PhaseDone(BOARD, "a", 0, "low", 2, 9.0),
        SegmentDone(BOARD, "a", 0, "key", 30.0, 20.0, 2.5),
        PhaseDone(BOARD, "a1", 0, "high", 1, 50.0),  # gone on with after a kill: says nothing
        PhaseDone(BOARD, "other", 0, "high", 2, 50.0),
    )
    assert known.times == {
        HERE: {
            WorkKind("vae", SIZE, 5): [0.5],
            WorkKind("load high"): [7.0],
            WorkKind("high", SIZE, 5): [1.0],
            WorkKind("move low"): [1.0],
            WorkKind("low", SIZE, 5): [2.0],
            WorkKind("decode", SIZE, 5): [2.5],
        }
    }


def test_what_is_learnt_adds_up() -> None:
    done = SegmentDone(BOARD, "a", 0, "key", 1.0, 0.5, 0.5)
    listen(done)
    known = listen(done)
    assert known.times == {Setting("fake"): {WorkKind("decode", SIZE, 5): [0.5, 0.5]}}


def test_times_are_kept_though_the_run_is_interrupted(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_film: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("svi_story.render.film.Film._finish", interrupt)
    assert svi_story("render", write_board(), "--engine", "animatic").code == 130
    (times,) = (kinds for setting, kinds in Calibration.load().times.items() if setting.engine == "animatic")
    assert {kind.work for kind in times} == {"camera", "decode", "store"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "rows": [{}]}', '{"format": 1, "rows": [3]}'])
def test_an_unreadable_file_is_an_empty_one(text: str) -> None:
    user_cache().mkdir(parents=True)
    (user_cache() / FILE).write_text(text, "utf-8")
    assert Calibration.load().times == {}


def test_a_place_that_cannot_be_written_costs_nothing() -> None:
    user_cache().parent.mkdir(parents=True)
    user_cache().write_text("in the way", "utf-8")
    listen(SegmentDone(BOARD, "a", 0, "key", 1.0, 0.5, 0.5))


@pytest.mark.parametrize("steps", [2, 4, 8, 50])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_phases_are_reckoned_as_the_engine_has_them(steps: int, guidance: float) -> None:
    settings = support.sampler(steps=steps, guidance=Guidance(guidance, guidance))
    segment = support.segment(settings=settings)
    options = EngineOptions((support.MODELS,), "float32")
    assert tuple(implementation_of("svi").phases_of(options, segment)) == tuple(
        support.engine().phases(segment)
    )


def shown(svi_story: Run, *words: object) -> tuple[dict[str, Any], str]:
    """`schedule` of the plan, and the plan for people."""
    found = svi_story("plan", *words, "--json")
    assert found.code == 0, found.err
    return json.loads(found.out)["schedule"], svi_story("plan", *words).out


def test_plan_shows_what_a_folder_costs_and_learns_from_its_render(
    write_board: Write, svi_story: Run, tmp_path: Path
) -> None:
    shutil.copy(support.DATA / "anchor.png", tmp_path / "anchor.png")
    engine = {"name": "svi", "steps": 2, "guidance": 2.0, "max_frames": 5}
    for name in "abc":
        clips = [{"prompt": f"{name} {clip}"} for clip in range(2)]
        write_board(
            f"storyboards/{name}.yaml",
            reference="../anchor.png",
            resolution="32x32",
            engine=engine,
            clips=clips,
        )
    before, text = shown(svi_story, "storyboards", *OPTIONS)
    (svi,) = before["engines"]
    assert (svi["segments"], svi["waves"], svi["forwards"]) == (6, 2, {"high": 12, "low": 12})
    assert svi["memory"]["offload"]["expert_loads"] == 4
    assert svi["memory"]["resident"]["expert_loads"] == 2
    assert svi["memory"]["offload"]["bytes_moved"] == 2 * svi["memory"]["resident"]["bytes_moved"]
    assert before["seconds"] is None
    assert "time: unknown until something similar has been rendered" in text
    assert "svi: 6 segments to render, 2 of them one after another at most; 12 forward passes high" in text

    ended = svi_story("render", "storyboards/a.yaml", *OPTIONS, "--memory", "offload", "--json")
    assert ended.code == 0, ended.err
    spent = sum(
        each["seconds"] for each in map(json.loads, ended.out.splitlines()) if each["event"] == "segment_done"
    )
    after, text = shown(svi_story, "storyboards", *OPTIONS)
    assert after["engines"][0]["segments"] == 4
    assert 0.2 * spent < after["seconds"] < 5 * spent
    assert "(cpu, float32, torch-flash, offload)" in text
    only, _ = shown(svi_story, "storyboards", *OPTIONS, "--memory", "stream")
    assert list(only["engines"][0]["memory"]) == ["stream"]
    assert only["seconds"] is None  # never rendered that way


def test_plan_of_what_is_there_says_so(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    first, text = shown(svi_story, board, "--engine", "animatic")
    assert (first["segments"], first["seconds"]) == (3, None)
    assert svi_story("render", board, "--engine", "animatic", "--only", "clip-02").code == 0
    begun, text = shown(svi_story, board, "--engine", "animatic")
    assert begun["segments"] == 1
    assert begun["seconds"] > 0
    assert "time: about 0:00:0" in text
    assert svi_story("render", board, "--engine", "animatic").code == 0
    done, text = shown(svi_story, board, "--engine", "animatic")
    assert (done["segments"], done["seconds"], done["unknown"]) == (0, 0, [])
    assert "animatic: every segment is cached" in text


def test_the_time_includes_the_assembly_once_it_was_measured(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, "--engine", "animatic").code == 0
    changed = write_board(seed=5)
    before, _ = shown(svi_story, changed, "--engine", "animatic")
    slow = Calibration()
    for work, seconds in (("encode", 2.0), ("join", 100.0)):
        for _ in range(20):
            slow.add(ASSEMBLY, WorkKind(work, "64x64"), seconds)
    slow.save()
    after, _ = shown(svi_story, changed, "--engine", "animatic")
    frames = 13 + 12 + 12
    assert 0 < before["seconds"] < 50
    assert after["seconds"] == pytest.approx(frames * 2.0 + 100, rel=0.01), "encoding is what takes longest"


def test_boards_that_cannot_be_keyed_are_left_out(write_board: Write, svi_story: Run) -> None:
    found, _ = shown(svi_story, write_board())
    assert found == {"segments": 0, "seconds": 0, "unknown": [], "engines": []}
