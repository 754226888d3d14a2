"""A long night with planted failures: everything makeable is made, nothing twice, and nothing piles up.

benchmarks/endurance.py is the same with 200 boards.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import endurance_night as endurance
import pytest
from endurance_night import CLIPS, LOST, REFUSED, Faults, quarters, render, trouble_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Run = Callable[..., Ended]

BOARDS = 40
CURES = {
    "no picture": "missing.png",
    "bad picture": "bad.png",
    "engine error": "try another prompt",
    "bug": "ZeroDivisionError: on purpose",
    "always out of memory": "close other programs",
}


def names(events: list[dict[str, Any]]) -> set[str]:
    return {Path(event["board"]).stem for event in events}


@pytest.mark.slow
def test_a_night_of_failures_makes_all_that_can_be_made_and_nothing_twice(svi_story: Run) -> None:
    folder = Path("storyboards")
    boards = [path.stem for path in endurance.write_boards(folder, BOARDS)]
    troubles = {name: trouble_of(number) for number, name in enumerate(boards)}
    calm = svi_story(
        "render", "storyboards/board-000.yaml", "storyboards/board-018.yaml", "-o", "calm", "--cache", "c"
    )
    assert calm.code == 0, calm.err

    killed = render(folder, Faults(kill_after=40))
    assert killed.status == -9
    night = render(folder, Faults(full_after=50))
    assert night.status == 3, night.errors  # there was a bug, among others

    assert names(night.of("film_done")) == {
        name for name, wrong in troubles.items() if wrong not in (*REFUSED, *LOST)
    }
    assert names(night.of("board_refused")) == {name for name, wrong in troubles.items() if wrong in REFUSED}
    failed = {Path(event["board"]).stem: event["message"] for event in night.of("board_failed")}
    assert failed.keys() == {name for name, wrong in troubles.items() if wrong in LOST}
    for name, message in failed.items():
        assert CURES[troubles[name]] in message
    for event in night.of("board_refused"):
        assert CURES[troubles[Path(event["board"]).stem]] in " ".join(event["problems"])
    delayed = Counter(Path(event["board"]).stem for event in night.of("board_delayed"))
    assert {troubles[name] for name in delayed} >= {"", "once out of memory", "always out of memory"}
    assert max(count for name, count in delayed.items() if not troubles[name]) == 1

    endurance.heal(folder)
    last = render(folder, Faults(healed=True))
    assert last.status == 0, last.errors
    assert names(last.of("film_done")) == set(boards)
    assert sum(event["made"] for event in last.of("film_done")) == sum(
        wrong in (*REFUSED, *LOST) for wrong in troubles.values()
    )
    made = killed.made() + night.made() + last.made()
    assert set(made.values()) == {1}
    pieces = Counter(
        (each["board"], each["clip"]) for one in (killed, night, last) for each in one.of("piece_done")
    )
    assert set(pieces.values()) == {1}
    assert len(made) == BOARDS * CLIPS - 2 * (BOARDS // 10)  # every tenth shares two clips
    for film in ("board-000.mp4", "board-018.mp4"):
        assert (Path("renders") / film).read_bytes() == (Path("calm") / film).read_bytes()

    first, final = quarters([sample.rss for sample in night.samples])
    assert final < first * 1.10
    first, final = quarters([sample.files for sample in night.samples])
    assert final <= first + 2
