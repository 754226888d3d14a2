"""Look up, lock, look up again, build aside, publish; and what is damaged is a miss with a warning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cache_scenario import (
    COUNT,
    INPUTS,
    KEY,
    PIECE_INPUTS,
    PIECE_KEY,
    Heard,
    decode,
    digest,
    is_consistent,
    leftovers,
    render,
)

from svi_story.cache.store import Store
from svi_story.errors import RenderError
from svi_story.files import CorruptError
from svi_story.plan.keys import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svi_story.plan.keys import Json


SCENARIO = Path(__file__).with_name("cache_scenario.py")
FPS = Fraction(15)
FILES = ("latents.safetensors", "frames.avi", "entry.json")


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def store(tmp_path: Path, heard: Heard) -> Store:
    return Store(tmp_path / "cache", heard)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed") / "cache"
    render(root, Heard())
    return root


@pytest.fixture
def whole(undisturbed: Path, store: Store) -> Path:
    """The folder of a finished entry in `store`."""
    shutil.copytree(undisturbed, store.layout.root)
    return store.folder(KEY)


def begun(store: Store) -> None:
    """Leave the latents of a render that was stopped before its frames."""
    with store.work(KEY) as work:
        work.save_latents({"latents": np.ones(3)})


def test_looking_creates_nothing(store: Store, tmp_path: Path, heard: Heard) -> None:
    assert store.state(KEY) == "to-render"
    assert store.entry(KEY) is None
    assert store.piece(PIECE_KEY) is None
    assert not store.quarantine(KEY, "forced")
    assert [*store.usage(), *store.verify(), *store.garbage(time.time()), *store.delete([])] == []
    assert store.folder(KEY) == tmp_path / "cache" / "entries" / KEY[:2] / KEY
    assert list(tmp_path.iterdir()) == []
    assert heard.warnings == []


def test_a_relative_root_means_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("cache"), heard)
    monkeypatch.chdir("/")
    assert store.folder(KEY).is_relative_to(tmp_path)


@pytest.mark.parametrize("key", ["", "..", "../" * 20, KEY.upper(), KEY + "\n", KEY[:-1]])
def test_only_keys_are_looked_up(store: Store, key: str) -> None:
    with pytest.raises(AssertionError, match="not a key"):
        store.folder(key)


def test_a_render(store: Store, heard: Heard) -> None:
    entry = render(store.layout.root, heard)
    assert heard.warnings == []
    assert entry == store.entry(KEY)
    assert entry.folder == store.folder(KEY)
    assert sorted(path.name for path in entry.folder.iterdir()) == [
        "entry.json",
        "frames.avi",
        "latents.safetensors",
    ]
    assert entry.frame_count == COUNT
    assert len(entry.frames_sha256) == 64
    assert entry.manifest["inputs"] == INPUTS
    assert entry.manifest["notes"] == {"clip": "window"}
    assert is_consistent(entry)
    assert leftovers(store.layout.root) == []
    tops = sorted(path.name for path in store.layout.root.iterdir())
    assert tops == ["CACHEDIR.TAG", "entries", "films", "locks", "pieces", "work"]
    assert (
        (store.layout.root / "CACHEDIR.TAG")
        .read_bytes()
        .startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    )


def test_folders_are_for_the_team_as_the_umask_says(tmp_path: Path, heard: Heard) -> None:
    previous = os.umask(0o002)
    try:
        render(tmp_path / "cache", heard)
        Store(tmp_path / "cache", heard).quarantine(KEY, "forced")
        render(tmp_path / "cache", heard)
    finally:
        os.umask(previous)
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "cache").rglob("*")}
    assert modes == {(True, 0o775), (False, 0o664)}


def test_states(store: Store) -> None:
    with store.work(KEY) as work:
        assert store.state(KEY) == "to-render"
        work.checkpoint.save({"x": np.ones(1)})
        assert store.state(KEY) == "partial"
        work.save_latents({"latents": np.ones(1)})
        assert work.checkpoint.load() is None
        assert store.state(KEY) == "partial"
    assert store.state(KEY) == "partial"
    render(store.layout.root, Heard())
    assert store.state(KEY) == "cached"


def test_unfinished_work_is_gone_on_with(store: Store) -> None:
    state = {"x": np.arange(4, dtype=np.float16), "step": np.array(3)}
    with store.work(KEY) as work:
        work.checkpoint.save(state)
    with store.work(KEY) as work:
        loaded = work.checkpoint.load()
        assert loaded is not None
        assert {name: array.tolist() for name, array in loaded.items()} == {"x": [0, 1, 2, 3], "step": 3}
        assert work.latents() is None
        work.save_latents({"latents": np.ones(3)})
    with store.work(KEY) as work:
        assert work.checkpoint.load() is None
        latents = work.latents()
        assert latents is not None
        work.write_frames(decode(latents), FPS, COUNT)
        entry = work.publish(INPUTS, {})
    assert is_consistent(entry)


def test_frames_can_be_written_again(store: Store) -> None:
    with store.work(KEY) as work:
        work.save_latents({"latents": np.ones(3)})
        for wrong in (COUNT - 1, COUNT + 1):
            with pytest.raises(RenderError, match="this is a bug"):
                work.write_frames(decode({"latents": np.ones(3)}), FPS, wrong)
        work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
        work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
        assert is_consistent(work.publish(INPUTS, {}))


def test_too_many_frames_end(store: Store) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield np.zeros((16, 16, 3), np.uint8)

    with store.work(KEY) as work, pytest.raises(RenderError, match="returned more of 5 frames"):
        work.write_frames(endless(), FPS, 5)


def test_what_is_not_complete_cannot_be_published(store: Store) -> None:
    with store.work(KEY) as work, pytest.raises(AssertionError, match="latents and frames come first"):
        work.publish(INPUTS, {})
    with store.work(KEY) as work:
        work.save_latents({"latents": np.ones(3)})
        with pytest.raises(AssertionError, match="latents and frames come first"):
            work.publish(INPUTS, {})
        work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
        with pytest.raises(AssertionError, match="not those of the key"):
            work.publish({**INPUTS, "seed": 8}, {})
    assert store.state(KEY) == "partial"


def test_an_error_inside_work_comes_through_and_leaves_no_halves(store: Store) -> None:
    def interrupted() -> None:
        with store.work(KEY) as work:
            work.save_latents({"latents": np.ones(3)})
            work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert leftovers(store.layout.root) == [f"work/{KEY}", f"work/{KEY}/latents.safetensors"]


def test_text_of_any_kind_survives(store: Store) -> None:
    prompt = "\ud800 \0 \u202e \U0001f408 \x1b[31m"
    inputs: dict[str, Json] = {"prompt": prompt, "big": 2**63 - 1, "small": 1e-300, "zero": -0.0}
    with store.work(key_of(inputs)) as work:
        work.save_latents({"latents": np.ones(3)})
        work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
        work.publish(inputs, inputs)
    entry = store.entry(key_of(inputs))
    assert entry is not None
    assert entry.manifest["inputs"] == entry.manifest["notes"] == inputs


def flip(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 0x10
    path.write_bytes(data)


def cut(path: Path, share: float) -> None:
    os.truncate(path, int(share * (path.stat().st_size - 1)))


def as_folder(path: Path, share: float) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path, share: float) -> None:
    path.unlink()
    os.mkfifo(path)


def as_loop(path: Path, share: float) -> None:
    path.unlink()
    path.symlink_to(path)


def longer(path: Path, share: float) -> None:
    with path.open("ab") as file:
        file.write(b"x")


DAMAGES: list[tuple[Callable[[Path, float], None], float]] = [
    *((flip, share) for share in (0, 0.01, 0.3, 0.5, 0.77, 0.99, 1)),
    *((cut, share) for share in (0, 0.2, 0.5, 1)),
    *((change, 0) for change in (longer, as_folder, as_pipe, as_loop)),
    (lambda path, share: path.unlink(), 0),
]


@pytest.mark.parametrize(("damage", "share"), DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_entry_is_quarantined_and_rendered_again(
    store: Store, heard: Heard, whole: Path, name: str, damage: Callable[[Path, float], None], share: float
) -> None:
    wanted = digest(store.entry(KEY) or pytest.fail("it is whole"))
    damage(whole / name, share)
    assert store.entry(KEY) is None
    [warning] = heard.warnings
    assert str(whole) in warning
    assert name in warning
    assert not whole.exists()
    [aside] = store.layout.quarantine.iterdir()
    assert str(aside) in warning
    assert aside.name.startswith(f"{KEY}-")
    assert (aside / "entry").is_dir()
    assert name in (aside / "reason.txt").read_text()
    assert digest(render(store.layout.root, heard)) == wanted
    assert len(heard.warnings) == 1


def forge(manifest: Path, **changes: object) -> None:
    """Change a manifest and seal it again, as a stranger could."""
    import hashlib

    from svi_story.plan.keys import canonical

    body = {**json.loads(manifest.read_bytes()), **changes}
    del body["sha256"]
    manifest.write_text(json.dumps({**body, "sha256": hashlib.sha256(canonical(body)).hexdigest()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": {**INPUTS, "seed": 8}},
        {"inputs": None},
        {"key": PIECE_KEY},
        {"files": {}},
        {"files": {"latents.safetensors": 3, "frames.avi": None}},
        {"files": [1]},
        {"frames": "5"},
        {"format": 2},
    ],
)
def test_a_manifest_that_does_not_fit_is_damage(
    store: Store, heard: Heard, whole: Path, changes: dict[str, object]
) -> None:
    forge(whole / "entry.json", **changes)
    assert store.entry(KEY) is None
    assert len(heard.warnings) == 1


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"a":', "[" * 100_000, '{"a": NaN}', "\xff", "{}"])
def test_a_manifest_of_nonsense_is_damage(store: Store, heard: Heard, whole: Path, text: str) -> None:
    (whole / "entry.json").write_text(text, "latin-1")
    assert store.entry(KEY) is None
    assert len(heard.warnings) == 1


def test_an_entry_of_another_key_is_damage(store: Store, heard: Heard, whole: Path) -> None:
    other = store.folder(PIECE_KEY)
    other.parent.mkdir(parents=True, exist_ok=True)
    whole.rename(other)
    assert store.entry(PIECE_KEY) is None
    assert "belongs to another key" in heard.warnings[0]


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "latents.safetensors"])
@pytest.mark.parametrize(
    ("damage", "share"), [(flip, 0.9), (cut, 0.5), (cut, 0), (as_folder, 0), (as_pipe, 0)]
)
def test_damaged_work_is_quarantined_and_done_again(
    store: Store, heard: Heard, name: str, damage: Callable[[Path, float], None], share: float
) -> None:
    with store.work(KEY) as work:
        if name.startswith("latents"):
            work.save_latents({"latents": np.ones(3)})
        work.checkpoint.save({"step": np.array(2), "x": np.ones(3)})
    damage(store.layout.work(KEY) / name, share)
    with store.work(KEY) as work:
        assert (work.latents() if name.startswith("latents") else work.checkpoint.load()) is None
    assert name in heard.warnings[0]
    [aside] = store.layout.quarantine.iterdir()
    assert (aside / name).exists()
    assert is_consistent(render(store.layout.root, heard))
    assert len(heard.warnings) == 1


def test_work_of_another_key_is_not_taken(store: Store, heard: Heard) -> None:
    begun(store)
    store.layout.work(KEY).rename(store.layout.work(PIECE_KEY))
    with store.work(PIECE_KEY) as work:
        assert work.latents() is None


def test_pieces(store: Store, heard: Heard) -> None:
    built: list[Path] = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_bytes(b"film")
        (path.parent / "sound.tmp").touch()

    piece = store.make_piece(PIECE_KEY, build, PIECE_INPUTS)
    assert piece == store.piece(PIECE_KEY) == store.make_piece(PIECE_KEY, build, PIECE_INPUTS)
    assert piece.read_bytes() == b"film"
    assert len(built) == 1
    assert built[0].suffix == ".mp4"
    assert leftovers(store.layout.root) == []

    piece.write_bytes(b"flim")
    assert store.piece(PIECE_KEY) is None
    assert "piece.mp4 has other bytes" in heard.warnings[0]
    assert store.make_piece(PIECE_KEY, build, PIECE_INPUTS).read_bytes() == b"film"


def test_a_piece_that_fails_is_not_there(store: Store) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("the encoder's own")

    with pytest.raises(ValueError, match="the encoder's own"):
        store.make_piece(PIECE_KEY, build, PIECE_INPUTS)
    assert store.piece(PIECE_KEY) is None
    assert leftovers(store.layout.root) == []
    with pytest.raises(AssertionError, match="under the name that was given"):
        store.make_piece(PIECE_KEY, lambda path: None, PIECE_INPUTS)


def test_setting_aside_by_force(store: Store, whole: Path, heard: Heard) -> None:
    begun(store)
    assert store.quarantine(KEY, "forced")
    assert store.state(KEY) == "to-render"
    [aside] = store.layout.quarantine.iterdir()
    assert sorted(path.name for path in aside.iterdir()) == ["entry", "reason.txt", "work"]
    assert (aside / "reason.txt").read_text() == "forced\n"
    assert not store.quarantine(KEY, "forced")
    for _ in range(2):
        begun(store)
        assert store.quarantine(KEY, "forced")
    assert len(list(store.layout.quarantine.iterdir())) == 3
    assert heard.warnings == []


def test_publishing_after_somebody_else_takes_theirs(store: Store, undisturbed: Path, heard: Heard) -> None:
    with store.work(KEY) as work:
        work.save_latents({"latents": np.ones(3)})
        work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
        shutil.copytree(undisturbed / "entries", store.layout.root / "entries")
        entry = work.publish(INPUTS, {})
    assert entry.latents()["latents"].shape == (2, 3)
    assert is_consistent(entry)
    assert leftovers(store.layout.root) == []
    assert heard.warnings == []


@pytest.mark.parametrize("junk", ["file", "folder", "empty", "damaged", "link"])
def test_publishing_over_junk(store: Store, undisturbed: Path, heard: Heard, junk: str) -> None:
    target = store.folder(KEY)
    with store.work(KEY) as work:
        work.save_latents({"latents": np.ones(3)})
        work.write_frames(decode({"latents": np.ones(3)}), FPS, COUNT)
        target.parent.mkdir(parents=True)
        if junk == "file":
            target.write_text("mine")
        elif junk == "link":
            target.symlink_to("nowhere")
        elif junk == "damaged":
            shutil.copytree(undisturbed / "entries" / KEY[:2] / KEY, target)
            flip(target / "frames.avi", 0.5)
        else:
            (target / "unknown" if junk == "folder" else target).mkdir(parents=True)
        entry = work.publish(INPUTS, {})
    assert store.entry(KEY) == entry
    assert is_consistent(entry)
    assert len(heard.warnings) == (junk != "empty")


@pytest.mark.parametrize("at", ["", "entries", "work", "pieces", "set-aside", "films"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, heard: Heard, at: str) -> None:
    root = tmp_path / "cache"
    if at:
        root.mkdir()
    (root / at).write_text("in the way")
    store = Store(root, heard)
    assert store.state(KEY) == "to-render"
    assert store.entry(KEY) is None
    assert [*store.usage(), *store.verify()] == []
    try:
        render(root, heard)
        begun(store)
        store.quarantine(KEY, "forced")
    except RenderError as error:
        assert "move away what is there" in str(error)  # noqa: PT017 - one of them need not fail
        (root / at).unlink()
    assert is_consistent(render(root, heard))
    assert heard.warnings == []


def test_junk_does_no_harm(store: Store, heard: Heard, whole: Path) -> None:
    wanted = store.entry(KEY)
    assert wanted is not None
    for folder in [path for path in store.layout.root.rglob("*") if path.is_dir()]:
        (folder / ".DS_Store").write_bytes(b"\0")
        (folder / ("0" * 64)).mkdir()
        (folder / ("f" * 64 + ".json")).mkdir()
        (folder / ".nfs0000").symlink_to("nowhere")
    (store.layout.root / "memo.json").write_text("{}")
    (store.layout.root / "work" / ("e" * 64)).touch()
    assert store.entry(KEY) == wanted
    with store.work("e" * 64) as work:
        work.save_latents({"latents": np.ones(3)})
    assert render(store.layout.root, heard) == wanted
    assert len(list(store.usage())) >= 2
    list(store.verify())
    store.delete(store.garbage(time.time() + 1e9))
    assert (store.layout.root / "memo.json").exists()


def test_an_entry_in_the_wrong_shard_is_nobodys(store: Store, whole: Path) -> None:
    shard = whole.parent.with_name("zz")
    whole.parent.rename(shard)
    assert [item for item in store.usage() if item.kind == "entry"] == []
    assert [item.kind for item in store.verify()] == ["piece"]


def test_an_entry_that_is_quarantined_while_it_is_read_is_just_a_miss(
    store: Store, heard: Heard, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> str:
        whole.rename(whole.with_name("gone"))
        return path.read_text()

    monkeypatch.setattr("svi_story.cache.entry.sha256_file", gone)
    assert store.entry(KEY) is None
    assert heard.warnings == []


def test_the_time_of_use_is_kept(store: Store, whole: Path) -> None:
    os.utime(whole, (1, 1))
    list(store.verify())
    assert whole.stat().st_mtime == 1
    assert store.entry(KEY)
    assert time.time() - whole.stat().st_mtime < 60


def test_an_entry_that_changes_after_the_look_up(store: Store, whole: Path) -> None:
    entry = store.entry(KEY)
    assert entry is not None
    with entry.frames() as frames:
        shutil.rmtree(whole)
        assert len(list(frames)) == COUNT  # an open file stays
    for use in (entry.latents, entry.frames):
        with pytest.raises(CorruptError, match=str(whole)):
            use()


def test_memory_is_no_entry(store: Store, whole: Path) -> None:
    """A shorter file under the same manifest."""
    entry = store.entry(KEY)
    assert entry is not None
    from svi_story.cache.frames import write_frames

    (whole / "frames.avi").unlink()
    write_frames(whole / "frames.avi", [np.zeros((16, 16, 3), np.uint8)], FPS)
    with pytest.raises(CorruptError, match="does not have its 5 frames"):
        entry.frames()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SCENARIO.parents[1])}


def start(root: Path, *rest: str) -> subprocess.Popen[str]:
    """A render in a process of its own, once it says that it has started."""
    command = [sys.executable, str(SCENARIO), "render", str(root), *rest]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment())
    assert "started" in hear(process)
    return process


def hear(process: subprocess.Popen[str]) -> dict[str, str]:
    """The next thing that a process says."""
    assert process.stdout is not None
    said: dict[str, str] = json.loads(process.stdout.readline())
    return said


def test_two_renders_at_once_wait_for_each_other(tmp_path: Path, undisturbed: Path) -> None:
    wanted = digest(Store(undisturbed, Heard()).entry(KEY) or pytest.fail("it is whole"))
    gate = tmp_path / "gate"
    first = start(tmp_path / "cache", str(gate))
    assert hear(first) == {"held": KEY}
    second = start(tmp_path / "cache")
    assert f"another process is rendering {KEY[:12]}; waiting" in hear(second)["warning"]
    time.sleep(0.2)
    gate.touch()
    outputs = [process.communicate(timeout=120) for process in (first, second)]
    lines = [json.loads(line) for out, _ in outputs for line in out.splitlines()]
    assert [line["digest"] for line in lines if "digest" in line] == [wanted, wanted]
    assert not [line for line in lines if KEY[:12] in line.get("warning", "") or "held" in line]
    assert all(err == "" for _, err in outputs)


def test_the_wait_ends_with_ctrl_c(store: Store) -> None:
    with store.work(KEY):
        process = start(store.layout.root)
        assert "another process is rendering" in hear(process)["warning"]
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) != 0
        assert "KeyboardInterrupt" in process.communicate()[1]


def test_threads_wait_for_each_other_too(store: Store, heard: Heard) -> None:
    entries: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: entries.append(
                digest(render(store.layout.root, heard, pause=lambda: time.sleep(0.2)))
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(set(entries)) == 1
    assert len(entries) == 3
    assert 1 <= len(heard.warnings) <= 4


@pytest.mark.parametrize(
    "error", [OSError(38, "Function not implemented"), OSError(37, "No locks available")]
)
def test_no_locks_are_no_obstacle(
    store: Store, heard: Heard, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(fcntl, "flock", refuse)
    stale = store.layout.work(KEY) / ".tmp-elsewhere-1-00000000"
    stale.mkdir(parents=True)
    assert is_consistent(render(store.layout.root, heard))
    assert store.quarantine(KEY, "forced")
    assert heard.warnings == []


def test_stale_halves_are_swept_only_under_a_held_lock(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from svi_story import files
    from svi_story.files import temp_name

    folder = store.layout.work(KEY)
    ours, other = folder / temp_name(), folder / ".tmp-otherhost-12-0123abcd"
    for path in (ours, other):
        (path / "x").mkdir(parents=True)
    half = folder / f"{temp_name()}-checkpoint.safetensors"
    half.touch()
    with monkeypatch.context() as patch:
        patch.setattr(files, "_try", lambda _: files.LockState.UNSUPPORTED)
        begun(store)
    assert ours.exists()
    assert half.exists()
    begun(store)
    assert not ours.exists()
    assert not half.exists()
    assert other.exists()


def test_a_fallback_is_only_read(store: Store, undisturbed: Path, tmp_path: Path, heard: Heard) -> None:
    old = tmp_path / "old"
    shutil.copytree(undisturbed, old)
    before = {path: path.stat().st_mtime_ns for path in sorted(old.rglob("*"))}
    both = Store(store.layout.root, heard, (old,))
    assert both.state(KEY) == "cached"
    assert both.folder(KEY).is_relative_to(old)
    assert digest(both.entry(KEY) or pytest.fail("it is there")) == digest(
        Store(undisturbed, heard).entry(KEY) or pytest.fail("it is there")
    )
    assert (both.piece(PIECE_KEY) or pytest.fail("it is there")).is_relative_to(old)
    assert not store.layout.root.exists()
    assert both.quarantine(KEY, "forced")
    assert both.state(KEY) == "to-render"
    assert both.entry(KEY) is None
    again = Store(store.layout.root, heard, (old,))
    assert again.pending_forced([KEY]) == {KEY}
    assert again.entry(KEY) is None
    render(store.layout.root, heard)
    assert again.folder(KEY).is_relative_to(store.layout.root)
    assert heard.warnings == []
    assert before == {path: path.stat().st_mtime_ns for path in sorted(old.rglob("*"))}


def test_damage_in_a_fallback_stays_there(
    store: Store, undisturbed: Path, tmp_path: Path, heard: Heard
) -> None:
    shutil.copytree(undisturbed, tmp_path / "old")
    both = Store(store.layout.root, heard, (tmp_path / "old",))
    frames = both.folder(KEY) / "frames.avi"
    frames.write_bytes(b"")
    assert both.entry(KEY) is None
    assert frames.exists()
    assert [what for what in heard.warnings if "is damaged" in what and what.endswith("it is ignored")]
