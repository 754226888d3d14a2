"""Bundles from strangers: no links, no escape, no bombs, and nothing read that they do not hold."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from bundle_support import (
    CACHE,
    Raw,
    bundle_of,
    changed,
    honest,
    ignore,
    job_of,
    members_of,
    raw_zip,
    raws,
    with_manifest,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svi_story.bundle.unpack import unpack
from svi_story.cache.entry import ENTRY, write_manifest
from svi_story.cache.frames import write_frames
from svi_story.cache.store import Store
from svi_story.cache.tensors import encode
from svi_story.errors import InputError
from svi_story.plan.fingerprints import Fingerprints

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Ended

    from svi_story.plan.keys import Json

    Write = Callable[..., Path]
    Run = Callable[..., Ended]

ANIMATIC = ("--engine", "animatic")
BUNDLE = Path("b.zip")


@pytest.fixture
def members(write_board: Write) -> dict[str, bytes]:
    """What an honest bundle holds."""
    return members_of(bundle_of(write_board(), Path("honest.zip")))


def prints() -> Fingerprints:
    return Fingerprints(Path("memo.json"))


def refused(svi_story: Run, *words: str, path: Path = BUNDLE) -> None:
    """The bundle is refused in words by every command, and nothing of it stays."""
    for command in ("validate", "render"):
        ended = svi_story(command, path)
        assert ended.code == 2, (ended.out, ended.err)
        assert ended.err.startswith(f"{path}: "), ended.err
        for word in words:
            assert word in ended.err, ended.err
    held = CACHE / "bundles"
    assert not held.exists() or not list(held.iterdir())
    assert not list(Path("renders").glob("*.mp4"))


def test_the_zips_of_these_tests_would_do(members: dict[str, bytes], svi_story: Run) -> None:
    BUNDLE.write_bytes(raw_zip(raws(members)))
    assert svi_story("validate", BUNDLE).code == 0
    honest(BUNDLE, with_manifest(members))
    assert svi_story("validate", BUNDLE).code == 0


def test_a_zip_of_something_else_is_called_so(svi_story: Run) -> None:
    with zipfile.ZipFile(BUNDLE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("film/board.yaml", "version: 1\n")
    refused(
        svi_story, "is a zip, but not a bundle: it contains no manifest.json; unpack it and name the board"
    )


LINK, DEVICE, PIPE, FOLDER = (
    kind << 16 for kind in (stat.S_IFLNK | 0o777, stat.S_IFBLK | 0o666, stat.S_IFIFO | 0o666, stat.S_IFDIR)
)


@pytest.mark.parametrize("attributes", [LINK, DEVICE, PIPE, FOLDER, FOLDER | 0x10, 0o104755 << 16, 0])
def test_links_devices_and_folders(members: dict[str, bytes], svi_story: Run, attributes: int) -> None:
    hostile = raws(members)
    hostile[-1] = replace(hostile[-1], attributes=attributes)
    BUNDLE.write_bytes(raw_zip(hostile))
    refused(svi_story, "not a plain, stored file")


ESCAPES = [
    *("../outside", "/etc/outside", "files/../../outside", "..\\outside", "C:\\outside", "C:/outside"),
    *("files/0123456789abcdef-../outside", "files/0123456789abcdef-..", "files/", "files", "board.yaml/"),
    *("board.yaml ", "BOARD.YAML", "files/0123456789ABCDEF-x.png", "files/0123456789abcdef-X.png"),
    *("//host/share", "~/outside", "con", "a\nb", "files/0123456789abcdef-\u202egnp.x", "\uff0e\uff0e/x"),
    *("cache/entries/x", "manifest.json/x", "./board.yaml", "files//0123456789abcdef-x", "memo.json", ""),
    "files/0123456789abcdef-" + "x" * 300,
    f"entries/{'0' * 64}/../../x",
    f"entries/{'0' * 64}/notes.txt",
    f"entries/{'0' * 63}/entry.json",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_are_none_of_ours(members: dict[str, bytes], svi_story: Run, name: str) -> None:
    before = {path for path in Path.cwd().parent.rglob("*") if "renders" not in path.parts}
    extended = with_manifest({**members, name: b"outside"})
    BUNDLE.write_bytes(raw_zip(raws(extended)))
    refused(svi_story)
    honest(BUNDLE, {**members, name or "x": b"outside"})  # not in the manifest
    refused(svi_story)
    image = next(iter(json.loads(members["manifest.json"])["files"]))
    taken = with_manifest({**members, name: b"outside"}, files={image: name})
    BUNDLE.write_bytes(raw_zip(raws(taken)))
    refused(svi_story)
    after = {path for path in Path.cwd().parent.rglob("*") if "renders" not in path.parts}
    assert after - before <= {Path.cwd() / BUNDLE, Path.cwd() / "renders"}


def test_names_cut_short_or_told_twice(members: dict[str, bytes], svi_story: Run) -> None:
    hostile = raws(members)
    hostile[1] = replace(hostile[1], name=hostile[1].name + b"\0.exe")
    BUNDLE.write_bytes(raw_zip(hostile))
    refused(svi_story, "not a plain, stored file")
    hostile = raws(members)
    BUNDLE.write_bytes(raw_zip([*hostile, hostile[1]]))
    refused(svi_story, "twice")
    hostile[1] = replace(hostile[1], local_name=b"../../../x")
    BUNDLE.write_bytes(raw_zip(hostile))
    refused(svi_story, "is not a bundle, or is damaged")


def test_encrypted_and_compressed_members(members: dict[str, bytes], svi_story: Run) -> None:
    for flags in (0x1, 0x8, 0x40, 0x800, 0x2000):
        hostile = raws(members)
        hostile[1] = replace(hostile[1], flags=flags)
        BUNDLE.write_bytes(raw_zip(hostile))
        refused(svi_story, "not a plain, stored file")
    for method in (8, 9, 12, 14, 93, 99):
        hostile = raws(members)
        hostile[1] = replace(hostile[1], method=method)
        BUNDLE.write_bytes(raw_zip(hostile))
        refused(svi_story, "not a plain, stored file")


def test_bombs(members: dict[str, bytes], svi_story: Run) -> None:
    zeros = bytes(50_000_000)
    packer = zlib.compressobj(9, wbits=-15)
    small = packer.compress(zeros) + packer.flush()
    bomb = Raw(b"files/0123456789abcdef-bomb", zeros, method=8, compressed=small)
    BUNDLE.write_bytes(raw_zip([*raws(members), bomb]))
    assert BUNDLE.stat().st_size < 100_000
    refused(svi_story, "not a plain, stored file")
    # Many names for the same bytes of the zip: nothing is compressed, and yet it would grow.
    data = bytes(100_000)
    name = "files/0123456789abcdef-{}".format
    many = {name(number): data for number in range(50)}
    shared = with_manifest({**members, **many}, files={f"{k}": name(k) for k in range(50)})
    whole = raws(shared)
    first = next(index for index, each in enumerate(whole) if each.name == name(0).encode())
    offset = sum(30 + len(each.name) + len(each.data) for each in whole[:first])
    overlapping = [
        each
        if index <= first
        else replace(each, compressed=b"", size=len(data), compressed_size=len(data), offset=offset)
        for index, each in enumerate(whole)
    ]
    BUNDLE.write_bytes(raw_zip(overlapping))
    refused(svi_story, "belong to none")


@pytest.mark.parametrize("lie", [{"size": 5}, {"size": 2**31}, {"size": 0}])
def test_sizes_that_lie(members: dict[str, bytes], svi_story: Run, lie: dict[str, int]) -> None:
    for index in range(len(members)):
        hostile = raws(members)
        hostile[index] = replace(hostile[index], **lie)  # type: ignore[arg-type]  # sizes only
        BUNDLE.write_bytes(raw_zip(hostile))
        refused(svi_story)
        both = {"size": lie["size"], "compressed_size": lie["size"]}
        hostile[index] = replace(hostile[index], **both)  # type: ignore[arg-type]  # sizes only
        BUNDLE.write_bytes(raw_zip(hostile))
        refused(svi_story)


@pytest.mark.parametrize("value", [0, 5, 2**40, 2**63, 2**64 - 1])
def test_zip64_that_lies(members: dict[str, bytes], svi_story: Run, value: int) -> None:
    most = 0xFFFFFFFF
    extra = (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + value.to_bytes(8, "little") * 3
    for fields in ({"size": most}, {"offset": most}, {"size": most, "compressed_size": most, "offset": most}):
        hostile = raws(members)
        hostile[1] = replace(hostile[1], extra=extra, **fields)  # type: ignore[arg-type]  # numbers only
        BUNDLE.write_bytes(raw_zip(hostile))
        refused(svi_story)


@pytest.mark.parametrize(
    "around",
    [
        {"before": b"#!/bin/sh\nrm -rf ~\n"},
        {"before": b"%PDF-1.7"},
        {"before": b"x"},
        {"between": bytes(4000)},
        {"after": bytes(4000)},
        {"comment": bytes(4000)},
        {"between": b"x"},
        {"after": b"x"},
        {"comment": b"x"},
    ],
)
def test_polyglots_and_hidden_data(members: dict[str, bytes], svi_story: Run, around: Any) -> None:
    BUNDLE.write_bytes(raw_zip(raws(members), **around))
    refused(svi_story, "belong to none")


def test_a_zip_behind_a_zip(members: dict[str, bytes], svi_story: Run) -> None:
    whole = raw_zip(raws(members))
    BUNDLE.write_bytes(whole + whole)
    refused(svi_story, "belong to none")
    honest(BUNDLE, with_manifest({**members, "files/0123456789abcdef-nested.zip": whole}))
    refused(svi_story, "not those that the board names")  # data that nobody asked for


def test_a_great_many_members_cost_little(members: dict[str, bytes], svi_story: Run) -> None:
    # 300,000 of them: the list alone is larger than ever needed.
    many = [Raw(b"files/%016x-x" % number, b"") for number in range(300_000)]
    BUNDLE.write_bytes(raw_zip([*raws(members), *many]))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refused(svi_story, "too many members")
    assert time.process_time() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    BUNDLE.write_bytes(raw_zip([*raws(members), *many[:20_000]]))
    refused(svi_story, "differ")


MANIFESTS: list[bytes] = [
    *(b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"\0" * 1000, b"[" * 100_000, b'{"a":' * 100_000),
    *(b"1" * 100_000, b'"x"', b"NaN"),
    bytes(17 * 2**20),
]


@pytest.mark.parametrize("number", range(len(MANIFESTS)))
def test_manifests_that_are_none(members: dict[str, bytes], svi_story: Run, number: int) -> None:
    honest(BUNDLE, {**members, "manifest.json": MANIFESTS[number]})
    refused(svi_story, "bundle")


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle": 2},
        {"bundle": True},
        {"bundle": None},
        {"board": "../board.yaml"},
        {"board": "/tmp/board.yaml"},
        {"board": ".board.yaml"},
        {"board": "x\0.yaml"},
        {"board": "a\nb.yaml"},
        {"board": "board.mp4"},
        {"board": "CON:.yaml"},
        {"board": "x" * 500 + ".yaml"},
        {"members": {}},
        {"members": {"board.yaml": {"bytes": -1, "sha256": "0" * 64}}},
        {"members": {"board.yaml": {"bytes": 10**400, "sha256": "0" * 64}}},
        {"members": {"board.yaml": {"bytes": 1.5, "sha256": "0" * 64}}},
        {"members": {"board.yaml": {"bytes": 1, "sha256": "../../x"}}},
        {"files": {}},
        {"files": {"anchor.png": "board.yaml"}},
        {"files": {"anchor.png": "/etc/passwd"}},
        {"files": {"anchor.png": "files/0123456789abcdef-absent.png"}},
        {"weights": {"x": {"bytes": 1, "sha256": "x"}}},
        {"settings": {"engine": "../../evil", "dtype": "float32", "vae": "whole"}},
        {"settings": {"engine": "svi", "dtype": "float8", "vae": "whole"}},
        {"keys": ["x"]},
        {"keys": "0" * 64},
        {"takes": ["x"]},
        {"takes": ["0" * 64] * 20_001},
        {"more": 1},
    ],
)
def test_manifests_that_lie(members: dict[str, bytes], svi_story: Run, changes: dict[str, Any]) -> None:
    honest(BUNDLE, changed(members, **changes))
    refused(svi_story, "bundle")


def test_members_that_are_absent_or_damaged(members: dict[str, bytes], svi_story: Run) -> None:
    for name, raw in members.items():
        honest(BUNDLE, {other: kept for other, kept in members.items() if other != name})
        refused(svi_story)
        if name != "manifest.json":
            honest(BUNDLE, {**members, name: bytes([raw[0] ^ 1]) + raw[1:]})
            refused(svi_story, "damaged (by its sha256)")
            honest(BUNDLE, {**members, name: raw + b"x"})
            refused(svi_story, "do not have the sizes")


SECRETS = ["/etc/passwd", "../../../../etc/passwd", "anchor.png/../secret.png", "secret.png", "./anchor.png"]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("where", ["reference", "clip", "voice", "sounds", "audio", "lora", "distill"])
def test_a_board_names_only_what_is_in_the_bundle(
    members: dict[str, bytes], svi_story: Run, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    shutil.copy("anchor.png", "secret.png")
    board: dict[str, Any] = yaml.safe_load(members["board.yaml"])
    for_board: dict[str, Any] = {
        "reference": {"reference": name},
        "audio": {"cut": {"audio": name}},
        "distill": {"engine": {"preset": "fast", "distill": {"high": name, "low": name}}},
    }
    for_clip: dict[str, Any] = {
        "clip": {"transition": "cut", "reference": name},
        "voice": {"voice": name},
        "sounds": {"sounds": [{"path": name}]},
        "lora": {"loras": [{"path": name}]},
    }
    board |= for_board.get(where, {})
    board["clips"][1] |= for_clip.get(where, {})
    hostile = with_manifest({**members, "board.yaml": yaml.safe_dump(board).encode()})
    if where == "reference":
        manifest = json.loads(members["manifest.json"])
        hostile = changed(hostile, files={"other.png": next(iter(manifest["files"].values()))})
    honest(BUNDLE, hostile)
    opened: list[str] = []
    real = os.open

    def listen(path: Any, *args: Any, **keys: Any) -> int:
        opened.append(str(path))
        return real(path, *args, **keys)

    monkeypatch.setattr(os, "open", listen)
    for command in (("validate",), ("plan", *ANIMATIC), ("render", *ANIMATIC)):
        ended = svi_story(command[0], BUNDLE, *command[1:])
        assert ended.code == 2
        assert "is not in the bundle" in ended.err, ended.err
    assert any(path.endswith("board.yaml") for path in opened)
    assert not [path for path in opened if "passwd" in path or "secret" in path]


def test_boards_that_are_none(members: dict[str, bytes], svi_story: Run) -> None:
    for raw in (
        b"",
        b"a: &a [*a]",
        b"[" * 10_000,
        b"!!python/object/apply:os.system [ls]",
        b"\0",
        b"x" * 3_000_000,
    ):
        honest(BUNDLE, with_manifest({**members, "board.yaml": raw}))
        ended = svi_story("render", BUNDLE, *ANIMATIC)
        assert ended.code == 2, ended.err
        assert "board.yaml" in ended.err


def test_pictures_that_are_none(members: dict[str, bytes], svi_story: Run) -> None:
    (image,) = (name for name in members if name.startswith("files/"))
    for raw in (b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(100), raw_zip(raws(members))):
        honest(BUNDLE, with_manifest({**members, image: raw}))
        ended = svi_story("render", BUNDLE, *ANIMATIC)
        assert ended.code == 2, ended.err
        assert "reference" in ended.err


def test_what_is_no_file(svi_story: Run, members: dict[str, bytes]) -> None:
    os.mkfifo("pipe.zip")
    for path, words in (("pipe.zip", "not a regular file"), ("gone.zip", "does not exist")):
        ended = svi_story("render", path)
        assert ended.code == 2
        assert words in ended.err
    Path("device.zip").symlink_to("/dev/zero")
    ended = svi_story("render", "device.zip")
    assert (ended.code, "not a regular file" in ended.err) == (2, True)
    Path("empty.zip").touch()
    refused(svi_story, "not a zip", path=Path("empty.zip"))


def test_a_zip_that_changes_while_it_is_read(
    members: dict[str, bytes], svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svi_story.bundle import archive
    from svi_story.bundle import unpack as module

    honest(BUNDLE, members)
    real = archive.content

    def swap(*args: Any) -> Any:
        yield from real(*args)
        BUNDLE.write_bytes(BUNDLE.read_bytes())

    monkeypatch.setattr(module, "content", swap)
    refused(svi_story, "changed while it was read")
    monkeypatch.setattr(module, "content", real)
    monkeypatch.setattr(Fingerprints, "file", lambda *_: "0" * 64)
    refused(svi_story, "changed while it was read")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_told_in_words(members: dict[str, bytes], data: st.DataObject) -> None:
    raw = bytearray(raw_zip(raws(members)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1) | st.integers(max(0, len(raw) - 500), len(raw) - 1))
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(raw)))
    BUNDLE.write_bytes(bytes(raw[:cut]))
    try:
        found = unpack(BUNDLE, Path("fuzz"), prints())
    except InputError:
        return
    assert {name: found.path(name).read_bytes() for name in found.manifest.members} == {
        name: value for name, value in members.items() if name != "manifest.json"
    }


def forge(
    folder: Path, key: str, inputs: dict[str, Json], *, side: int = 64, frames: int = 13, pose: Any = None
) -> dict[str, bytes]:
    """A sealed entry of red frames, under somebody's key."""
    work = folder / key
    work.mkdir(parents=True)
    red = np.zeros((side, side, 3), np.uint8)
    red[..., 0] = 255
    from fractions import Fraction

    write_frames(work / "frames.avi", [red] * frames, Fraction(15))
    pose = np.array([0.5, 0.5, 1.0]) if pose is None else pose
    (work / "latents.safetensors").write_bytes(encode({"start": pose, "pose": pose}, {"key": key}))
    write_manifest(work, ENTRY, key, inputs, {"frames": frames, "notes": {}})
    return {f"entries/{key}/{path.name}": path.read_bytes() for path in work.iterdir()}


def test_a_forged_entry_spoils_no_other_film(
    members: dict[str, bytes], svi_story: Run, write_board: Write
) -> None:
    board = write_board()
    assert svi_story("render", board, *ANIMATIC).code == 0
    film = Path("renders/board.mp4").read_bytes()
    shutil.rmtree("renders")
    forged: dict[str, bytes] = {}
    for segment in job_of(board).segments:
        forged |= forge(Path("forged"), segment.key, dict(segment.inputs))
    honest(BUNDLE, with_manifest({**members, **forged}))
    assert svi_story("render", BUNDLE).code == 0
    assert Path("renders/b.mp4").read_bytes() != film
    assert svi_story("render", board, *ANIMATIC).code == 0
    assert Path("renders/board.mp4").read_bytes() == film


@pytest.mark.parametrize("wrong", ["width", "count", "sealed", "key", "codec", "playlist", "latents", "json"])
def test_entries_that_do_not_fit_are_left_out(members: dict[str, bytes], svi_story: Run, wrong: str) -> None:
    segment = job_of(Path("board.yaml")).segments[0]
    inputs, folder = dict(segment.inputs), f"entries/{segment.key}"
    about: dict[str, Any] = {"width": {"side": 128}, "count": {"frames": 5}}.get(wrong, {})
    forged = forge(Path("forged"), segment.key, inputs, **about)
    if wrong == "sealed":
        forged[f"{folder}/frames.avi"] += b"x"
    elif wrong == "key":
        other = job_of(Path("board.yaml")).segments[1].key
        forged = {name.replace(segment.key, other): raw for name, raw in forged.items()}
    elif wrong == "codec":
        forged = reseal(segment.key, inputs, lambda path: write_mpeg(path / "frames.avi"))
    elif wrong == "playlist":
        text = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
        forged = reseal(segment.key, inputs, lambda path: (path / "frames.avi").write_bytes(text))
    elif wrong == "latents":
        pickled = b"\x80\x04cos\nsystem\n(S'touch owned'\ntR."
        forged = reseal(segment.key, inputs, lambda path: (path / "latents.safetensors").write_bytes(pickled))
    elif wrong == "json":
        forged[f"{folder}/entry.json"] = b"[" * 100_000
    honest(BUNDLE, with_manifest({**members, **forged}))
    ended = svi_story("render", BUNDLE)
    assert ended.code == 0, ended.err
    assert "1 of its segments cannot be used" in ended.err
    assert not Path("owned").exists()


def test_latents_that_would_fill_the_memory_are_left_out(
    members: dict[str, bytes], svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = job_of(Path("board.yaml")).segments[0]
    forged = forge(Path("forged"), segment.key, dict(segment.inputs))
    size = len(forged[f"entries/{segment.key}/latents.safetensors"])
    monkeypatch.setattr("svi_story.bundle.unpack.LARGEST_LATENTS", size - 1)
    honest(BUNDLE, with_manifest({**members, **forged}))
    ended = svi_story("render", BUNDLE)
    assert ended.code == 0, ended.err
    assert "1 of its segments cannot be used" in ended.err
    assert f"has {size} bytes, more than" in ended.err


def reseal(key: str, inputs: dict[str, Json], change: Callable[[Path], Any]) -> dict[str, bytes]:
    forge(Path("again"), key, inputs)
    work = Path("again") / key
    (work / "entry.json").unlink()
    change(work)
    write_manifest(work, ENTRY, key, inputs, {"frames": 13, "notes": {}})
    return {f"entries/{key}/{path.name}": path.read_bytes() for path in work.iterdir()}


def write_mpeg(path: Path) -> None:
    import av

    path.unlink()
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(13):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    "pose",
    [np.full(3, np.nan), np.full(3, np.inf), np.zeros(3), np.zeros((2, 2)), np.full(3, 1e300), np.array(1)],
)
def test_forged_latents_fail_in_words(members: dict[str, bytes], svi_story: Run, pose: Any) -> None:
    segment = job_of(Path("board.yaml")).segments[0]
    forged = forge(Path("forged"), segment.key, dict(segment.inputs), pose=pose)
    honest(BUNDLE, with_manifest({**members, **forged}))
    ended = svi_story("render", BUNDLE)
    assert ended.code == 1, ended.err
    assert "damaged or forged" in ended.err
    assert svi_story("render", BUNDLE, "--force", "all").code == 0


def test_a_forged_frame_of_another_size_fails_in_words(members: dict[str, bytes], svi_story: Run) -> None:
    segment = job_of(Path("board.yaml")).segments[0]
    inputs = dict(segment.inputs)

    def change(work: Path) -> None:
        """The first frame's own header says 16384 x 16384."""
        raw = bytearray((work / "frames.avi").read_bytes())
        place = raw.index(b"MAGY", 2000)
        at = place + raw[place:].index((64).to_bytes(4, "little") * 2)
        raw[at : at + 8] = (16384).to_bytes(4, "little") * 2
        (work / "frames.avi").write_bytes(raw)

    honest(BUNDLE, with_manifest({**members, **reseal(segment.key, inputs, change)}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = svi_story("render", BUNDLE)
    assert ended.code == 1, ended.err
    assert any(said in ended.err for said in ("has no frame", "another size", "damaged or forged"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


def second_frame(raw: bytes | bytearray) -> slice:
    """Where the second frame's bytes lie in an AVI file."""
    place = raw.index(b"00dc", raw.index(b"00dc", raw.index(b"movi")) + 4)
    start = place + 8
    return slice(start, start + int.from_bytes(raw[place + 4 : start], "little"))


def test_a_frame_smaller_than_the_others_fails_in_words(members: dict[str, bytes], svi_story: Run) -> None:
    segment = job_of(Path("board.yaml")).segments[0]
    forge(Path("small"), segment.key, dict(segment.inputs), side=32)

    def change(work: Path) -> None:
        raw = bytearray((work / "frames.avi").read_bytes())
        small = (Path("small") / segment.key / "frames.avi").read_bytes()
        place, other = second_frame(raw), small[second_frame(small)]
        raw[place] = other.ljust(place.stop - place.start, b"\0")
        (work / "frames.avi").write_bytes(raw)

    honest(BUNDLE, with_manifest({**members, **reseal(segment.key, dict(segment.inputs), change)}))
    ended = svi_story("render", BUNDLE)
    assert ended.code == 1, ended.err
    assert any(said in ended.err for said in ("frame 1 has another size", "damaged or forged"))


def test_names_of_strangers_reach_no_terminal_raw(members: dict[str, bytes], svi_story: Run) -> None:
    honest(BUNDLE, changed(members, board="\x1b[31m\u202e.yaml"))
    ended = svi_story("render", BUNDLE)
    assert ended.code == 2
    assert "\x1b" not in ended.err
    odd = {"\x1b[31m.safetensors": {"bytes": 1, "sha256": "0" * 64}}
    honest(BUNDLE, changed(members, weights=odd))
    assert "\x1b" not in svi_story("render", BUNDLE).err
    assert Store(CACHE, ignore).garbage(time.time()) is not None
