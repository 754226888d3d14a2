"""Bundles beside boards: whose film it is, what is mended, what is refused, and in which words."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import pytest
import svi_support as support
from bundle_support import (
    CACHE,
    bundle_of,
    changed,
    honest,
    ignore,
    job_of,
    members_of,
    pack_job,
    raw_zip,
    raws,
    warnings_to,
    with_manifest,
)
from test_bundle_hostile import forge

from svi_story.bundle.archive import check_seamless
from svi_story.cache.store import Store
from svi_story.enginespec import EngineOptions
from svi_story.errors import InputError
from svi_story.files import temp_name
from svi_story.plan.fingerprints import Fingerprints

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
FILM = Path("renders/board.mp4")
HERE = ("-o", "renders", "--cache", "renders/.cache")
SVI = EngineOptions((support.MODELS,), "float32")


def state_of(svi_story: Run, path: Path, *flags: str) -> str:
    return str(json.loads(svi_story("status", path, *flags, "--json").out)["boards"][0]["state"])


def test_a_forged_film_never_passes_as_another_ones(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    film = FILM.read_bytes()
    good = bundle_of(board, Path("good/board.zip"), entries=True)
    forged: dict[str, bytes] = {}
    for segment in job_of(board).segments:
        forged |= forge(Path("forged"), segment.key, dict(segment.inputs))
    Path("bad").mkdir()
    bad = honest(Path("bad/board.zip"), with_manifest({**members_of(good), **forged}))
    for honest_one in (board, good):
        assert svi_story("render", bad, *HERE).code == 0
        spoilt = FILM.read_bytes()
        assert spoilt != film
        assert state_of(svi_story, bad, *HERE) == "up to date"
        assert state_of(svi_story, honest_one, *ANIMATIC, *HERE) == "outdated"
        why = svi_story("plan", honest_one, *ANIMATIC, *HERE, "--why").out
        assert "the existing film is made of segments that" in why
        assert "nothing changed" not in why
        ended = svi_story("render", honest_one, *ANIMATIC, *HERE, "--json")
        assert "segment_started" not in ended.out  # it is joined again, and no frame is made
        assert FILM.read_bytes() == film
        assert state_of(svi_story, honest_one, *ANIMATIC, *HERE) == "up to date"
    assert state_of(svi_story, bad, *HERE) == "outdated"
    assert "segments that a bundle brought" in svi_story("plan", board, *ANIMATIC, "--why").out


def test_boards_and_a_forged_bundle_in_one_run(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    film = FILM.read_bytes()
    good = bundle_of(board, Path("good.zip"), entries=True)
    forged: dict[str, bytes] = {}
    for segment in job_of(board).segments:
        forged |= forge(Path("forged"), segment.key, dict(segment.inputs))
    bad = honest(Path("bad.zip"), with_manifest({**members_of(good), **forged}))
    for order in ((bad, good, board), (board, bad, good)):
        shutil.rmtree("renders")
        assert svi_story("render", *order, *ANIMATIC).code == 0
        assert FILM.read_bytes() == Path("renders/good.mp4").read_bytes() == film
        assert Path("renders/bad.mp4").read_bytes() != film


def test_a_damaged_file_is_mended_and_what_was_rendered_is_kept(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC, "--only", "clip-02").code == 0
    job = job_of(board)
    bundle = pack_job(job, Path("b.zip"), Store(CACHE, ignore))
    assert svi_story("render", bundle).code == 0
    (folder,) = (CACHE / "bundles").iterdir()
    (image,) = (folder / "files").iterdir()
    raw, manifest = image.read_bytes(), (folder / "manifest.json").read_bytes()

    def spoil_image() -> None:
        image.write_bytes(b"x")

    def drop_manifest() -> None:
        (folder / "manifest.json").unlink()

    def bend_manifest() -> None:
        (folder / "manifest.json").write_bytes(b"{}")

    def block_folder() -> None:
        shutil.rmtree(folder / "files")
        (folder / "files").write_bytes(b"in the way")

    def block_file() -> None:
        shutil.rmtree(folder / "board")
        (folder / "board/board.yaml").mkdir(parents=True)

    for damage in (spoil_image, drop_manifest, bend_manifest, block_folder, block_file):
        damage()
        Path("renders/b.mp4").unlink()
        ended = svi_story("render", bundle, "--json")
        assert ended.code == 0, ended.err
        assert "segment_started" not in ended.out, damage
        assert image.read_bytes() == raw
        assert (folder / "manifest.json").read_bytes() == manifest
        assert list((CACHE / "bundles").iterdir()) == [folder]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
@pytest.mark.parametrize("name", ["manifest.json", "anchor.png"])
def test_what_cannot_be_read_now_is_not_damaged(
    write_board: Write, svi_story: Run, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    bundle = bundle_of(write_board(), Path("b.zip"))
    assert svi_story("validate", bundle).code == 0
    (folder,) = (CACHE / "bundles").iterdir()
    os.utime(next((folder / "files").iterdir()))  # its hash is not known without reading it
    real = os.open

    def refuse(path: Any, *args: Any, **keys: Any) -> int:
        if "bundles" in Path(path).parts and Path(path).name.endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        ended = svi_story("validate", bundle)
    assert ended.code == 2
    assert os.strerror(number) in ended.err
    assert "damaged" not in ended.err
    assert not (CACHE / "set-aside").exists()
    ended = svi_story("validate", bundle)
    assert (ended.code, "damaged" in ended.err) == (0, False)


def test_what_a_killed_packer_left_is_swept(write_board: Write) -> None:
    parts = temp_name().split("-")
    left = Path("-".join([*parts[:2], "999999999", parts[3], "o.zip"]))
    other = Path(f".tmp-another_host-1-{parts[3]}-o.zip")
    left.touch()
    other.touch()
    bundle_of(write_board(), Path("o.zip"))
    assert (left.exists(), other.exists()) == (False, True)


def test_a_lora_that_is_not_there_is_no_bundle(write_board: Write, svi_story: Run, picture: Path) -> None:
    Path("wrong.safetensors").write_bytes(b"no weights")
    loras = [{"path": "stlye.safetensors"}]
    board = write_board(engine={"loras": loras}, resolution="64x64")
    for models in ("no-models", str(support.MODELS)):
        ended = svi_story("export", board, "--to", "bundle", "--models", models)
        assert ended.code == 2
        assert 'engine.loras[0].path: "stlye.safetensors" does not exist' in ended.err, ended.err
        assert f"{board}:" in ended.err
    both = write_board("both.yaml", engine={"loras": [{"path": picture.name}]}, reference=picture.name)
    with pytest.raises(InputError, match="also named as a LoRA"):
        bundle_of(both, Path("b.zip"))
    assert not list(Path("renders").glob("*.zip"))


def test_a_board_is_packed_where_no_weights_are(write_board: Write, svi_story: Run) -> None:
    board = write_board()
    ended = svi_story("export", board, "--to", "bundle", "--models", "no-models")
    assert ended.code == 0, ended.err
    assert "cannot compute the cache keys on this machine, so the bundle has none" in ended.err
    assert svi_story("validate", "renders/board.zip").code == 0
    ended = svi_story("export", board, "--to", "bundle", "--entries", "--models", "no-models")
    assert (ended.code, "no-models" in ended.err) == (2, True)


def test_large_numbers_of_a_zip_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name in ("one", "two", "three"):
            info = ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=name == "one") as member:
                member.write(b"x" * 10)
    for after in (b"", b"x"):
        path.write_bytes(path.read_bytes() + after)
        wrong = pytest.raises(BadZipFile, match="belong to none") if after else nullcontext()
        with path.open("rb") as file, ZipFile(file) as found, wrong:
            check_seamless(file, found.infolist())


def test_a_gap_between_two_members(write_board: Write, svi_story: Run) -> None:
    members = raws(members_of(bundle_of(write_board(), Path("good.zip"))))
    last = replace(members[-2], compressed=members[-2].data + b"hidden")
    last = replace(last, compressed_size=len(last.data))
    Path("b.zip").write_bytes(raw_zip([*members[:-2], last, members[-1]]))
    ended = svi_story("validate", "b.zip")
    assert (ended.code, "belong to none" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("ending", [".yaml", ".zip"])
def test_a_name_too_long_for_what_lies_beside_a_film(write_board: Write, svi_story: Run, ending: str) -> None:
    board = write_board()
    long = Path("x" * 241 + ending)
    shutil.copy(bundle_of(board, Path("b.zip")) if ending == ".zip" else board, long)
    for command in ("validate", "render"):
        ended = svi_story(command, long)
        assert ended.code == 2
        assert "its name is 241 bytes long without its ending; rename it to 240 at most" in ended.err
    assert not Path("renders/.cache/entries").exists()
    fits = long.rename("é" * 120 + ending)
    ended = svi_story("render", fits, *ANIMATIC)
    assert ended.code == 0, ended.err
    assert Path("renders", "é" * 120 + ".json").exists()
    assert svi_story("preview", fits).code == 0


def test_errors_name_the_bundle_and_the_authors_files(write_board: Write, svi_story: Run) -> None:
    members = members_of(bundle_of(write_board("cat.yaml"), Path("good.zip")))
    bundle = Path("cat.zip")
    honest(bundle, with_manifest({**members, "board.yaml": b"version: 1\ncolour: red\n"}))
    ended = svi_story("validate", bundle)
    assert "cat.zip (cat.yaml):2: colour: is not a field" in ended.err, ended.err
    assert "bundles/" not in ended.err
    (image,) = (name for name in members if name.startswith("files/"))
    honest(bundle, with_manifest({**members, image: b"no picture"}))
    ended = svi_story("validate", bundle)
    assert ended.code == 2
    assert "cat.zip (cat.yaml)" in ended.err, ended.err
    assert "bundles/" not in ended.err
    assert "anchor.png" in ended.err


def test_no_file_of_a_bundle_passes_as_weights(write_board: Write, svi_story: Run) -> None:
    members = members_of(bundle_of(write_board(), Path("good.zip")))
    (name,) = json.loads(members["manifest.json"])["files"]
    honest(Path("b.zip"), changed(members, weights={name: None}))
    ended = svi_story("validate", "b.zip")
    assert ended.code == 2
    assert "names one file as weights and as something else" in ended.err


def test_plans_and_counts_are_told_in_true_words(write_board: Write, svi_story: Run) -> None:
    clips = [{"prompt": "The sea."}, {"prompt": "Home.", "id": "home", "transition": {"dip": "0.4s"}}]
    told = svi_story("plan", write_board(clips=clips), *ANIMATIC).out
    assert "home (dip 6)" in told, told
    one = svi_story("validate", write_board("one.yaml", clips=clips[:1]))
    assert ": valid: 1 clip, " in one.out


def test_a_packer_without_keys_tells_why(write_board: Write) -> None:
    heard: list[str] = []
    prints = Fingerprints(Path("memo"), report=warnings_to(heard))
    pack_job(job_of(write_board(), engine=None), Path("b.zip"), prints=prints)
    assert ["cannot compute the cache keys" in each for each in heard] == [True]
