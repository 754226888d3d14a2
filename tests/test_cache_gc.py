"""What is in the cache, whether it is whole, and what may go: nothing young, in use or locked."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from cache_scenario import KEY, PIECE_KEY, Heard, render

from svi_story.cache.store import Store

DAY = 24 * 3600.0
OTHER = "0" * 64


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def store(tmp_path: Path, heard: Heard) -> Store:
    """A store with one film's entry and piece, and the film."""
    store = Store(tmp_path / "cache", heard)
    render(store.layout.root, heard)
    (store.layout.root / "film.mp4").touch()
    return store


def film(store: Store) -> Path:
    return store.layout.root / "film.mp4"


def later(store: Store, days: float = 8) -> list[str]:
    """What `gc` would delete that much later, by the places' names."""
    items = store.garbage(time.time() + days * DAY)
    return sorted(str(item.path.relative_to(store.layout.root)) for item in items)


def places(*kinds: str) -> list[str]:
    where = {
        "entry": f"entries/{KEY[:2]}/{KEY}",
        "piece": f"pieces/{PIECE_KEY[:2]}/{PIECE_KEY}",
        "locks": f"locks/{KEY}.lock",
        "piece lock": f"locks/{PIECE_KEY}.lock",
        "work": f"work/{OTHER}",
        "work lock": f"locks/{OTHER}.lock",
    }
    return sorted(where[kind] for kind in kinds)


def records(store: Store) -> list[str]:
    return [f"films/{path.name}" for path in store.layout.films.iterdir()]


def begin(store: Store) -> None:
    with store.work(OTHER) as work:
        work.save_latents({"latents": np.ones(3)})


def test_usage(store: Store) -> None:
    begin(store)
    found = {item.kind: item for item in store.usage()}
    assert {kind: item.key for kind, item in found.items()} == {
        "entry": KEY,
        "piece": PIECE_KEY,
        "work": OTHER,
    }
    entry = found["entry"]
    assert entry.path == store.folder(KEY)
    assert entry.bytes == sum(path.stat().st_size for path in store.folder(KEY).iterdir())
    assert abs(entry.last_used - time.time()) < 60
    assert entry.notes == {"clip": "window"}
    assert [found[kind].in_use for kind in ("entry", "piece", "work")] == [True, True, False]
    film(store).unlink()
    assert not any(item.in_use for item in store.usage())


def test_usage_of_a_damaged_entry(store: Store, heard: Heard) -> None:
    (store.folder(KEY) / "entry.json").write_text("{")
    [entry] = [item for item in store.usage() if item.kind == "entry"]
    assert entry.notes == {}
    assert heard.warnings == []


def test_verify(store: Store, heard: Heard) -> None:
    assert [(item.kind, item.key, item.problem) for item in store.verify()] == [
        ("entry", KEY, ""),
        ("piece", PIECE_KEY, ""),
    ]
    (store.folder(KEY) / "frames.avi").write_bytes(b"x")
    (store.layout.piece(PIECE_KEY) / "piece.json").unlink()
    problems = [item.problem for item in store.verify()]
    assert "frames.avi has 1 bytes" in problems[0]
    assert "piece.json: No such file" in problems[1]
    assert len(heard.warnings) == 2
    assert list(store.verify()) == []
    assert len(list(store.layout.quarantine.iterdir())) == 2


def test_what_a_film_is_made_of_stays(store: Store) -> None:
    assert later(store, 10_000) == []


def test_the_board_alone_keeps_it_too(store: Store) -> None:
    film(store).rename(store.layout.root / "board.yaml")
    assert later(store, 10_000) == []


def test_without_film_and_board_it_may_go_after_a_week(store: Store) -> None:
    film(store).unlink()
    assert later(store, 6.9) == []
    assert later(store, 7.1) == sorted(places("entry", "piece", "locks", "piece lock") + records(store))


def test_use_makes_young(store: Store) -> None:
    film(store).unlink()
    os.utime(store.folder(KEY), (1, 1))
    for path in store.folder(KEY).iterdir():
        os.utime(path, (1, 1))
    assert later(store, 0) == places("entry")
    assert store.entry(KEY)
    assert later(store, 0) == []


def test_another_age(store: Store) -> None:
    from datetime import timedelta

    film(store).unlink()
    assert len(store.garbage(time.time() + 2, timedelta(seconds=1))) == 5


def test_a_film_made_again_of_other_things(store: Store) -> None:
    store.remember_film(film(store), store.layout.root / "board.yaml", [OTHER], [])
    assert later(store) == places("entry", "piece", "locks", "piece lock")


def test_two_films_share(store: Store) -> None:
    other = store.layout.root / "other.mp4"
    other.touch()
    store.remember_film(other, store.layout.root / "other.yaml", [KEY], [])
    film(store).unlink()
    assert f"entries/{KEY[:2]}/{KEY}" not in later(store)
    assert f"pieces/{PIECE_KEY[:2]}/{PIECE_KEY}" in later(store)


def test_names_of_any_bytes(store: Store) -> None:
    other = Path(os.fsdecode(os.fsencode(store.layout.root) + b"/\xff\n\xc3\xa9.mp4"))
    other.touch()
    store.remember_film(other, other, [KEY], [PIECE_KEY])
    film(store).unlink()
    assert later(store) == [name for name in later(store) if name.startswith("films/")]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"film": 1}', "[" * 100_000, '{"keys": [[]]}'])
def test_a_damaged_record_keeps_everything(store: Store, heard: Heard, text: str) -> None:
    film(store).unlink()
    (store.layout.films / f"{OTHER}.json").write_text(text)
    begin(store)
    assert [name for name in later(store) if not name.startswith("films/")] == []
    assert "everything counts as used" in heard.warnings[0]
    assert str(store.layout.films) in heard.warnings[0]


def test_deleting(store: Store, heard: Heard) -> None:
    begin(store)
    film(store).unlink()
    store.quarantine(PIECE_KEY, "forced")
    (store.layout.films / ".tmp-host-1-00000000-x.json").touch()
    (store.layout.root / ".tmp-host-1-00000000-CACHEDIR.TAG").touch()
    items = store.garbage(time.time() + 8 * DAY)
    assert sum(item.bytes for item in items) > 15_000
    assert {item.why for item in items if "set-aside" in str(item.path)} == {"set aside"}
    assert all(item.path.exists() for item in items)
    deleted = store.delete(items)
    assert {item.path for item in deleted} >= {store.folder(KEY), store.layout.work(OTHER)}
    assert not any(item.path.exists() for item in items)
    files = [path.name for path in store.layout.root.rglob("*") if path.is_file()]
    assert files == ["CACHEDIR.TAG"]
    assert store.state(KEY) == "to-render"
    render(store.layout.root, heard)
    assert heard.warnings == []


def test_what_was_used_since_the_listing_stays(store: Store) -> None:
    film(store).unlink()
    items = store.garbage(time.time() + 8 * DAY)
    time.sleep(0.02)
    assert store.entry(KEY)
    assert store.folder(KEY) not in [item.path for item in store.delete(items)]
    assert store.entry(KEY)


def test_what_a_film_wants_since_the_listing_stays(store: Store) -> None:
    film(store).unlink()
    items = store.garbage(time.time() + 8 * DAY)
    film(store).touch()
    assert store.delete(items) == [item for item in items if item.path.parent == store.layout.films]
    assert store.entry(KEY)


def test_what_is_worked_on_stays(store: Store) -> None:
    film(store).unlink()
    items = store.garbage(time.time() + 8 * DAY)
    with store.work(KEY):
        assert later(store) == sorted(places("piece", "piece lock") + records(store))
        deleted = [item.path for item in store.delete(items)]
        assert store.layout.piece(PIECE_KEY) in deleted
        assert store.folder(KEY) not in deleted
        assert store.layout.lock(KEY).exists()
    assert store.entry(KEY)


def test_unfinished_work_of_a_board_stays_until_it_is_finished(store: Store) -> None:
    begin(store)
    assert later(store) == places("work", "work lock")
    store.remember_film(film(store), store.layout.root / "board.yaml", [KEY, OTHER], [PIECE_KEY])
    assert later(store) == []
    store.layout.work(OTHER).rename(store.layout.work(KEY))  # killed between publishing and tidying up
    assert later(store) == [f"work/{KEY}"]
    store.delete(store.garbage(time.time() + 8 * DAY))
    assert store.entry(KEY)
    assert not store.layout.work(KEY).exists()


def test_a_half_deleted_entry_is_swept_at_any_age(store: Store) -> None:
    folder = store.folder(KEY)
    folder.rename(folder.with_name(f".trash-{KEY}-00000000"))
    assert store.state(KEY) == "to-render"
    assert store.entry(KEY) is None
    assert later(store, 0) == [f"entries/{KEY[:2]}/.trash-{KEY}-00000000"]
    store.delete(store.garbage(time.time()))
    assert later(store, 0) == []


def test_a_link_is_deleted_and_not_what_it_names(store: Store, tmp_path: Path) -> None:
    film(store).unlink()
    elsewhere = tmp_path / "elsewhere"
    store.folder(KEY).rename(elsewhere)
    store.folder(KEY).symlink_to(elsewhere)
    store.delete(store.garbage(time.time() + 8 * DAY))
    assert not os.path.lexists(store.folder(KEY))
    assert (elsewhere / "frames.avi").exists()


def test_whoever_waits_for_a_lock_that_gc_removes_is_served_alone(store: Store, heard: Heard) -> None:
    """A lock file that was deleted guards nothing: the waiter has to notice."""
    film(store).unlink()
    os.utime(store.layout.lock(KEY), (1, 1))
    inside: list[int] = []
    overlaps: list[int] = []

    def work_a_little() -> None:
        with store.work(KEY):
            inside.append(1)
            overlaps.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work_a_little) for _ in range(6)]
    for thread in threads:
        thread.start()
        store.delete(store.garbage(time.time()))
    for thread in threads:
        thread.join(120)
    assert overlaps == [1] * 6
