"""Bundles: a board with all it names in one zip, and the same film elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np
import pytest
import svi_support as support
import yaml
from bundle_support import CACHE, bundle_of, ignore, job_of, members_of, pack_job, warnings_to
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_svi_cli import reference_board

from svi_story.bundle.format import Manifest, name_problem
from svi_story.bundle.unpack import unpack
from svi_story.cache.store import Store
from svi_story.enginespec import EngineOptions
from svi_story.errors import InputError, RenderError
from svi_story.plan.fingerprints import Fingerprints

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
SVI = EngineOptions((support.MODELS,), "float32")


def elsewhere(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle alone, in another working directory."""
    folder = tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)
    moved = folder / bundle.name
    shutil.copy(bundle, moved)
    monkeypatch.chdir(folder)
    return moved


def states(svi_story: Run, path: Path, *flags: str) -> set[str]:
    plan = json.loads(svi_story("plan", path, *flags, "--json").out)["boards"][0]
    return {segment["state"] for clip in plan["clips"] for segment in clip["segments"]}


def write_sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        tone = np.sin(np.arange(4000) / 5) * 8000
        file.writeframes(tone.astype("<i2").tobytes())
    return path


def test_the_same_film_bit_for_bit_elsewhere(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Path
) -> None:
    shutil.copy(picture, tmp_path / "far.png")
    Image.open(picture).rotate(90).save(tmp_path / "street.png")
    clips: list[dict[str, Any]] = [
        {"prompt": "The sea is rising."},
        {"prompt": "The street.", "transition": "cut", "reference": str(tmp_path / "street.png")},
    ]
    clips[1] |= {"voice": "../voice.wav", "caption": "A street."}
    write_sound(tmp_path / "voice.wav")
    finish = {"audio": str(write_sound(tmp_path / "music/rain.wav")), "captions": "both", "title_card": "雨"}
    board = write_board(
        "storyboards/der Füllfilm 雨.yaml", reference="../far.png", clips=clips, title=None, cut=finish
    )
    assert svi_story("render", board, *ANIMATIC).code == 0
    film = Path("renders/der Füllfilm 雨.mp4").read_bytes()
    bundle = elsewhere(bundle_of(board, Path("x.zip")), tmp_path, monkeypatch)
    shutil.rmtree(tmp_path / "storyboards")
    shutil.rmtree(tmp_path / "music")
    (tmp_path / "voice.wav").unlink()
    (tmp_path / "far.png").unlink()
    (tmp_path / "street.png").unlink()
    ended = svi_story("render", bundle)
    assert (ended.code, ended.out) == (0, "renders/x.mp4\n"), ended.err
    assert ended.err.startswith(f"{bundle}: a bundle of der Füllfilm 雨.yaml; engine animatic\n")
    assert "warning" not in ended.err
    assert Path("renders/x.mp4").read_bytes() == film
    record = json.loads(Path("renders/x.json").read_text("utf-8"))
    assert record["title"] == "der Füllfilm 雨"
    assert record["board"] == str(bundle)
    assert [each["path"] for each in record["references"]] == ["../far.png", str(tmp_path / "street.png")]
    assert [clip["reference"] for clip in record["clips"]] == [each["path"] for each in record["references"]]
    assert record["clips"][1]["finish"]["voices"][0]["path"] == "../voice.wav"
    assert record["cut"]["music"]["path"] == finish["audio"]
    again = svi_story("render", bundle, "--verbose")
    assert "up to date" in again.err
    state = svi_story("status", bundle, "--json")
    assert json.loads(state.out)["boards"][0]["state"] == "up to date"
    valid = svi_story("validate", bundle)
    assert (valid.code, valid.out.count("2 clips")) == (0, 1), valid.err
    assert (CACHE / "entries").exists()  # it brought none: they are in the usual cache
    assert svi_story("validate", bundle, "--cache", "apart").code == 0
    ended = svi_story("validate", Path.cwd())
    assert "holds no storyboard" in ended.err  # boards that were unpacked do not count


def test_the_same_svi_film_elsewhere_with_its_settings(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(support.lora_file(support.MODELS, "low", "2.0-pro"), tmp_path / "style.safetensors")
    support.change_file(
        tmp_path / "style.safetensors", lambda t: {key: 2 * value for key, value in t.items()}
    )
    clips: list[dict[str, Any]] = [
        {"prompt": prompt, "frames": 5} for prompt in support.SETTINGS["prompts"][:2]
    ]
    clips[1]["loras"] = [{"path": "style.safetensors", "low": 0.5}]
    board = reference_board(write_board, "2.0", clips=clips)
    assert svi_story("render", board, "--models", support.MODELS, "--dtype", "float32").code == 0
    film = Path("renders/board.mp4").read_bytes()
    bundle = bundle_of(board, Path("b.zip"), engine=None, options=SVI)
    manifest = json.loads(members_of(bundle)["manifest.json"])
    assert manifest["settings"] == {"engine": "svi", "dtype": "float32", "vae": "whole"}
    bundle = elsewhere(bundle, tmp_path, monkeypatch)
    models = support.copy_models(Path("other"))
    ended = svi_story("render", bundle, "--models", models)
    assert ended.code == 2
    digest = hashlib.sha256((tmp_path / "style.safetensors").read_bytes()).hexdigest()
    assert digest in ended.err
    assert f'"style.safetensors" is not below {models}' in ended.err
    assert svi_story("validate", bundle).code == 0
    assert states(svi_story, bundle, "--models", str(models)) == {None}
    (models / "deep/er").mkdir(parents=True)
    shutil.move(tmp_path / "style.safetensors", models / "deep/er/another name.safetensors")
    (models / "deep/circle").symlink_to(models)
    ended = svi_story("render", bundle, "--models", models)
    assert ended.code == 0, ended.err
    assert f"{bundle}: a bundle of board.yaml; engine svi, float32, vae whole\n" in ended.err
    assert "not the frames" not in ended.err
    assert Path("renders/b.mp4").read_bytes() == film
    record = json.loads(Path("renders/b.json").read_text("utf-8"))
    assert record["clips"][1]["loras"][0]["path"] == "style.safetensors"


def test_other_weights_or_settings_are_told(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [{"prompt": "The street.", "frames": 5}]
    board = reference_board(write_board, "2.0", clips=clips)
    bundle = elsewhere(bundle_of(board, Path("b.zip"), engine=None, options=SVI), tmp_path, monkeypatch)
    models = support.copy_models(Path("other"))
    support.change_file(models / support.VAE_FILE, lambda tensors: {k: 2 * v for k, v in tensors.items()})
    ended = svi_story("plan", bundle, "--models", models, "--dtype", "bfloat16")
    assert ended.code == 0
    told = "engine svi, bfloat16, vae whole, not as it was packed: svi, float32, vae whole"
    assert f"{bundle}: a bundle of board.yaml; {told}\n" in ended.err
    assert f"{bundle}: these are not the frames it was packed with: dtype, weights differ\n" in ended.err
    other = svi_story("plan", bundle, *ANIMATIC)
    assert "not as it was packed" in other.err


def test_with_entries_nothing_is_made_and_no_other_board_gets_them(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Path
) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    film = Path("renders/board.mp4").read_bytes()
    bundle = elsewhere(bundle_of(board, Path("b.zip"), entries=True), tmp_path, monkeypatch)
    assert states(svi_story, bundle) == {"cached"}
    ended = svi_story("render", bundle, "--json")
    events = [json.loads(line) for line in ended.out.splitlines()]
    names = {event["event"] for event in events}
    assert "segment_started" not in names
    assert {"bundle_opened", "segment_reused", "film_done"} <= names
    assert Path("renders/b.mp4").read_bytes() == film
    assert not (CACHE / "entries").exists()
    shutil.copy(picture, "anchor.png")
    shutil.copy(board, "board.yaml")
    assert states(svi_story, Path("board.yaml"), *ANIMATIC) == {"to-render"}


def test_takes_are_packed_and_rendered_takes_are_not_rendered_again(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [
        {"prompt": "Fog is drifting.", "takes": 2},
        {"prompt": "Rain is falling.", "takes": 3, "pick": 2},
    ]
    board = write_board(clips=clips)
    assert svi_story("render", board, *ANIMATIC).code == 0
    (last,) = job_of(board).plan.shots[1].other_takes[1:]
    Store(CACHE, ignore).quarantine(last.segments[0].key, "it is not rendered yet")
    bundle = elsewhere(bundle_of(board, Path("b.zip"), entries=True), tmp_path, monkeypatch)
    ended = svi_story("render", bundle, "--json")
    assert ended.code == 0, ended.err
    events = [json.loads(line) for line in ended.out.splitlines()]
    made = [(event["clip"], event["take"]) for event in events if event["event"] == "segment_done"]
    assert made == [("clip-02", 3)]
    takes = json.loads(svi_story("takes", bundle, "--json").out)["clips"]
    assert [[take["state"] for take in clip["takes"]] for clip in takes] == [["cached"] * 2, ["cached"] * 3]


def test_unfinished_segments_are_told_and_made_there(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC, "--only", "clip-02").code == 0
    heard: list[str] = []
    prints = Fingerprints(Path("memo"), report=warnings_to(heard))
    bundle = pack_job(job_of(board), Path("b.zip"), Store(CACHE, warnings_to(heard)), prints)
    assert "1 segments are not rendered yet" in heard[0]
    bundle = elsewhere(bundle, tmp_path, monkeypatch)
    assert states(svi_story, bundle) == {"cached", "to-render"}
    assert svi_story("render", bundle).code == 0
    assert states(svi_story, bundle) == {"cached"}


def test_a_damaged_entry_is_left_out_of_the_pack(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    job = job_of(board)
    (Store(CACHE, ignore).folder(job.segments[1].key) / "frames.avi").write_bytes(b"x")
    bundle = bundle_of(board, Path("b.zip"), entries=True)
    inside = {name.split("/")[1] for name in members_of(bundle) if name.startswith("entries/")}
    assert inside == {job.segments[0].key, job.segments[2].key}


def test_packing_again_gives_the_same_bytes_and_so_does_packing_a_bundle(write_board: Write) -> None:
    board = write_board(cut={"audio": str(write_sound(Path("music/Rain on (tin).wav")))})
    first = bundle_of(board, Path("one.zip")).read_bytes()
    os.utime("anchor.png", (1, 1))
    assert bundle_of(board, Path("two.zip")).read_bytes() == first
    assert bundle_of(Path("two.zip"), Path("three.zip"), engine=None).read_bytes() == first
    names = [name.partition("-")[2] for name in members_of(Path("one.zip")) if name.startswith("files/")]
    assert sorted(names) == ["anchor.png", "rain_on__tin_.wav"]


def test_the_command_packs_and_another_machine_renders(
    write_board: Write, svi_story: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    film = Path("renders/board.mp4").read_bytes()
    ended = svi_story("export", board, "--to", "bundle", "--entries", *ANIMATIC)
    assert (ended.code, ended.out, ended.err) == (0, "renders/board.zip\n", "")
    plain = svi_story("export", board, "--to", "bundle", "--as", "out/plain.zip", *ANIMATIC)
    assert (plain.code, plain.out) == (0, "out/plain.zip\n")
    assert Path("out/plain.zip").read_bytes() == bundle_of(board, Path("same.zip")).read_bytes()
    again = svi_story("export", "renders/board.zip", "--to", "bundle", "--as", "again.zip")
    assert (again.code, Path("again.zip").read_bytes()) == (0, Path("out/plain.zip").read_bytes()), again.err
    assert svi_story("export", board, "--to", "srt", "--entries").code == 2
    bundle = elsewhere(Path("renders/board.zip"), tmp_path, monkeypatch)
    assert states(svi_story, bundle) == {"cached"}
    assert svi_story("render", bundle).code == 0
    assert Path("renders/board.mp4").read_bytes() == film
    assert svi_story("export", bundle, "--to", "otio").code == 0
    assert svi_story("preview", bundle).code == 0


NAMES = st.text(
    st.characters(min_codepoint=32, exclude_categories=("C", "Z")), min_size=1, max_size=20
).filter(lambda name: not name_problem(f"{name}.yaml"))


@settings(max_examples=20)
@given(stem=NAMES, picture=st.binary(min_size=1, max_size=300), image=NAMES, comment=NAMES)
def test_pack_then_unpack_is_identity(stem: str, picture: bytes, image: str, comment: str) -> None:
    pixels = np.frombuffer(picture, np.uint8)[None, :, None].repeat(3, 2)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / f"{image}.png").write_bytes(file.getvalue())
        text = {"version": 1, "reference": f"{image}.png", "clips": [{"prompt": "x", "frames": 5}]}
        board = root / f"{stem}.yaml"
        raw = (yaml.safe_dump(text, allow_unicode=True) + f"\n# {comment}\r\n").encode()
        board.write_bytes(raw)
        bundle = bundle_of(board, root / "b.zip", cache=root / "cache")
        found = unpack(bundle, root / "other", Fingerprints(root / "memo"))
        assert found.board.name == board.name
        assert found.board.read_bytes() == raw
        (member,) = found.manifest.files.values()
        assert found.manifest.files == {f"{image}.png": member}
        assert found.path(member).read_bytes() == file.getvalue()
        assert job_of(bundle, cache=root / "cache").plan.title == stem


def test_a_name_that_other_systems_do_not_take_is_refused(write_board: Write) -> None:
    for name in ("a:b.yaml", "a\\b.yaml", "a\u202eb.yaml", "x" * 220 + ".yaml"):
        with pytest.raises(InputError, match="rename it"):
            bundle_of(write_board(name), Path("b.zip"))
    assert not Path("b.zip").exists()


def test_what_changes_while_it_is_packed_is_refused(
    write_board: Write, monkeypatch: pytest.MonkeyPatch, picture: Path
) -> None:
    board = write_board()
    job = job_of(board)
    prints = Fingerprints(Path("memo.json"))
    prints.file(picture)
    monkeypatch.setattr("svi_story.plan.fingerprints._file_state", str)  # as if nothing had changed
    raw = picture.read_bytes()
    pack_job(job, Path("b.zip"), prints=prints)
    before = Path("b.zip").read_bytes()
    for changed in (raw + b"more", raw[:-1] + b"x"):
        picture.write_bytes(changed)
        with pytest.raises((RenderError, InputError), match="changed while it was packed"):
            pack_job(job, Path("b.zip"), prints=prints)
        prints.known = {key: value for key, value in prints.known.items() if "anchor" in key}
    assert Path("b.zip").read_bytes() == before
    board.write_text(board.read_text() + "# more\n")
    with pytest.raises(InputError, match="changed while it was packed"):
        pack_job(job, Path("b.zip"))


@pytest.mark.parametrize("call", ["write", "flush", "fsync", "replace"])
def test_a_writer_that_fails_leaves_what_was_there(
    write_board: Write, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    job = job_of(write_board())
    Path("out").mkdir()
    target = Path("out/b.zip")
    target.write_bytes(b"the one before")

    def full(*_args: object, **_keys: object) -> None:
        raise OSError(28, "No space left on device")

    places = {
        "write": ("zipfile._ZipWriteFile.write", full),
        "flush": ("zipfile.ZipFile._write_end_record", full),
        "fsync": ("os.fsync", full),
        "replace": ("pathlib.Path.replace", full),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*places[call])
        with pytest.raises(RenderError, match="No space left"):
            pack_job(job, target)
    assert [path.name for path in target.parent.iterdir()] == ["b.zip"]
    assert target.read_bytes() == b"the one before"
    pack_job(job, target)
    assert ZipFile(target).testzip() is None


def test_without_weights_the_keys_are_unknown_and_nothing_is_said_of_them(
    write_board: Write, svi_story: Run
) -> None:
    bundle = bundle_of(write_board(), Path("b.zip"), engine=None)
    manifest = Manifest.model_validate_json(members_of(bundle)["manifest.json"])
    assert (manifest.keys, manifest.made_of, manifest.settings.engine) == ((), {}, "svi")
    ended = svi_story("plan", bundle, *ANIMATIC)
    assert (ended.code, "not the frames" in ended.err) == (0, False)


def test_an_animatic_of_a_board_whose_loras_are_not_here(write_board: Write, svi_story: Run) -> None:
    board = write_board(engine={"max_frames": 13, "loras": [{"path": "/nowhere/style.safetensors"}]})
    bundle = bundle_of(board, Path("b.zip"))
    manifest = Manifest.model_validate_json(members_of(bundle)["manifest.json"])
    assert manifest.weights == {"/nowhere/style.safetensors": None}
    assert svi_story("render", bundle).code == 0
    ended = svi_story("plan", bundle, "--engine", "svi", "--models", support.MODELS)
    assert ended.err.count("was missing when this bundle was packed") == 1, ended.err


def test_a_board_and_its_bundle_would_write_one_film(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    ended = svi_story("render", board, bundle_of(board, Path("board.zip")), *ANIMATIC)
    assert ended.code == 2
    assert "board.zip: would write renders/board.mp4, and so would " in ended.err


def test_boards_and_bundles_in_one_run(write_board: Write, svi_story: Run, tmp_path: Path) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    good = bundle_of(board, Path("good.zip"), entries=True)
    Path("bad.zip").write_bytes(b"no zip")
    ended = svi_story("render", write_board("two.yaml", seed=7), good, "bad.zip", *ANIMATIC)
    assert ended.code == 1
    assert ended.out.split() == ["renders/two.mp4", "renders/good.mp4"]
    assert "bad.zip" in ended.err


PROGRAM = """
import sys
from pathlib import Path
from svi_story.plan.fingerprints import Fingerprints
from svi_story.bundle.unpack import unpack
found = unpack(Path(sys.argv[1]), Path("cache"), Fingerprints(Path("cache/memo.json")))
print(found.board.read_bytes() != b"")
"""


def test_two_processes_unpack_one_bundle(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    bundle = bundle_of(board, Path("b.zip"), entries=True)
    program = [sys.executable, "-c", PROGRAM, str(bundle)]
    both = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["True\n", "True\n"]
    (folder,) = Path("cache/bundles").iterdir()
    assert (folder / "cache/entries").exists()


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_unpacking_on_a_full_disk_leaves_nothing(
    write_board: Write, monkeypatch: pytest.MonkeyPatch, svi_story: Run, call: str
) -> None:
    bundle = bundle_of(write_board(), Path("b.zip"))

    def full(*_args: object, **_keys: object) -> None:
        raise OSError(28, "No space left on device")

    place = {
        "write": "svi_story.bundle.unpack.content",
        "fsync": "svi_story.bundle.unpack.sync",
        "rename": "pathlib.Path.rename",
    }
    with monkeypatch.context() as patch:
        patch.setattr(place[call], full)
        ended = svi_story("render", bundle, "--cache", "cache")
    assert ended.code == 2
    assert "No space left on device" in ended.err
    assert list(Path("cache/bundles").iterdir()) == []
    assert svi_story("render", bundle, "--cache", "cache").code == 0


def test_what_a_killed_one_left_is_swept_and_a_damaged_one_is_quarantined(
    write_board: Write, svi_story: Run
) -> None:
    bundle = bundle_of(write_board(), Path("b.zip"))
    assert svi_story("render", bundle).code == 0
    (folder,) = (CACHE / "bundles").iterdir()
    from svi_story.files import temp_name

    left = folder.with_name(f"{temp_name()}-{folder.name}")
    folder.rename(left)
    assert svi_story("status", bundle).code == 0
    assert list((CACHE / "bundles").iterdir()) == [folder]
    (image,) = (folder / "files").iterdir()
    image.write_bytes(b"another picture")
    ended = svi_story("plan", bundle)
    assert ended.code == 0
    assert "(quarantine)" in ended.err
    assert image.read_bytes() != b"another picture"


def test_the_cache_lists_bundles_and_gc_takes_them_after_a_week(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    plain = bundle_of(board, Path("plain.zip"))
    full = bundle_of(board, Path("full.zip"), entries=True)
    shutil.rmtree("renders")
    assert svi_story("render", plain, full).code == 0
    listed = [item for item in json.loads(svi_story("cache", "ls", "--json").out) if item["kind"] == "bundle"]
    assert [item["notes"] for item in listed] == [{"board": "board.yaml"}] * 2
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (plain, full)}
    assert {item["key"]: item["in_use"] for item in listed} == {
        digests["plain.zip"]: False,
        digests["full.zip"]: True,
    }
    assert len(json.loads(svi_story("cache", "verify", "--json").out)) > 6  # the bundle's own entries too

    def bundles(days: float) -> set[str]:
        store = Store(CACHE, ignore)
        items = store.garbage(time.time() + days * 24 * 3600)
        return {item.path.name for item in items if item.path.parent.name == "bundles"}

    assert bundles(6.9) == set()
    assert bundles(7.1) == {digests["plain.zip"]}  # the other's film is made of its entries
    full.unlink()
    Path("renders/full.mp4").unlink()
    assert bundles(7.1) == set(digests.values())
    store = Store(CACHE, ignore)
    store.delete(store.garbage(time.time() + 8 * 24 * 3600))
    assert list((CACHE / "bundles").iterdir()) == []
