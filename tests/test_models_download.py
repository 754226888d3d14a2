"""Downloads from a hub on this machine: what is needed, checked, resumed; every failure with its cure."""

from __future__ import annotations

import _socket
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest
from fake_hub import CONVERTED, DISTILL, LIGHTX2V, MODELS, SVI, TOKENIZER, WAN, FakeHub, serving, tiny_hub
from huggingface_hub.utils._http import close_session

from svi_story.engines.svi.weights import download, hashes
from svi_story.engines.svi.weights.catalogue import parts_for
from svi_story.engines.svi.weights.download import Hub
from svi_story.engines.svi.weights.hashes import DownloadRecords
from svi_story.engines.svi.weights.locate import ModelFolders, find_weights
from svi_story.errors import InputError, RenderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Ended

    from svi_story.enginespec.sampling import Variant

    Run = Callable[..., Ended]

SHARD = "high_noise_model/diffusion_pytorch_model-00002-of-00002.safetensors"
ROOT = Path("models")
PIECES = {f"{TOKENIZER}/google/umt5-xxl/spiece.model": b"pieces"}
"""What the hub has besides: part of upstream's layout."""


@pytest.fixture(autouse=True)
def loopback(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This module talks to this machine, and to no other."""

    def connect(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a test reached for {address}"
        _socket.socket.connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def lacking(variant: Variant, preset: str = "quality") -> list[str]:
    """What a variant lacks in the models folder."""
    return find_weights(ModelFolders((ROOT,))).missing(parts_for(variant, preset))


@pytest.fixture
def hub(loopback: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with the tiny weights; huggingface_hub knows no other and waits for nothing."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "SVI_STORY_MODELS"):
        monkeypatch.delenv(name, raising=False)
    constants = huggingface_hub.constants
    with serving(tiny_hub()) as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")[2]
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{served.url}/{{{template}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no-token")
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield served
        close_session()


def get(variant: Any = "2.0", preset: str = "quality", progress: Any = hashes.ignore_progress) -> list[str]:
    """Download; returns the names of the files that were missing."""
    items = download.prepare(ROOT, parts_for(variant, preset), Hub())
    download.check_space(ROOT, items)
    download.fetch(ROOT, items, Hub(), progress)
    return [item.name for item in items if not item.there]


def files_of(root: Path) -> dict[str, bytes]:
    """Every file below a folder that is not hidden."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in found if not p.name.startswith(".")}


def parts(name: str = "") -> list[Path]:
    """The files that are not finished."""
    return [path for path in ROOT.rglob(".*") if path.suffix == ".part" and Path(name).name in path.name]


# --- what is downloaded, and where to


@pytest.mark.parametrize(("variant", "suffix"), [("2.0", ""), ("2.0-pro", "_pro")])
def test_a_variant_is_downloaded_into_upstream_s_layout(hub: FakeHub, variant: str, suffix: str) -> None:
    get(variant)
    wanted = files_of(MODELS) | PIECES
    pair = [f"{e}_noise_lora_v2.0{suffix}.safetensors" for e in ("high", "low")]
    wanted = {n: d for n, d in wanted.items() if "lora" not in n or n.endswith(tuple(pair))}
    assert files_of(ROOT) == wanted
    assert not lacking("2.0-pro" if variant == "2.0-pro" else "2.0")
    assert not parts()


def test_a_fast_preset_brings_its_pair(hub: FakeHub) -> None:
    get(preset="draft")
    assert {p.name for p in (ROOT / LIGHTX2V / DISTILL).iterdir()} == {
        "high_noise_model.safetensors",
        "low_noise_model.safetensors",
    }
    assert not lacking("2.0", "fast")


def test_what_is_there_is_not_fetched_again(hub: FakeHub) -> None:
    get("2.0")
    hub.asked.clear()
    assert get("2.0") == []
    assert hub.reads() == []
    hub.asked.clear()
    assert all("_pro" in name for name in get("2.0-pro"))
    assert len(hub.reads()) == 4  # two files, each from the hub and from where the hub sends one


def test_files_from_elsewhere_are_hashed_once_and_kept(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODELS, ROOT)
    hashed: list[str] = []
    items = download.prepare(ROOT, parts_for("2.0"), Hub(), lambda name, _done, _all: hashed.append(name))
    assert [item.name for item in items if not item.there] == ["google/umt5-xxl/spiece.model"]
    assert len(hashed) == 8  # each weight; small files have git's hash
    hashed.clear()
    download.prepare(ROOT, parts_for("2.0"), Hub(), lambda name, _done, _all: hashed.append(name))
    assert hashed == []


@pytest.mark.parametrize("change", ["cut", "other"])
@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_differs_is_kept_and_that_is_told(
    hub: FakeHub, svi_story: Run, change: str, known: bool
) -> None:
    """Whether it was downloaded and changed since, or is the user's own."""
    get()
    victim = ROOT / WAN / SHARD
    whole = victim.read_bytes()
    other = whole[:-5] if change == "cut" else b"x" * len(whole)
    victim.write_bytes(other)
    (ROOT / TOKENIZER).rename("elsewhere")
    if not known:
        (ROOT / hashes.RECORDS).unlink()
    hub.asked.clear()
    ended = svi_story("models", "download", "--yes")
    assert ended.code == 2, ended.err
    assert f"{victim}: has" in ended.err
    assert "svi-story did not download it so; move it away or delete it" in ended.err
    assert victim.read_bytes() == other
    assert hub.reads() == []
    assert not (ROOT / TOKENIZER).exists(), "nothing is downloaded before all is well"
    victim.unlink()
    ended = svi_story("models", "download", "--yes")
    assert ended.code == 0, ended.err
    assert victim.read_bytes() == whole


@pytest.mark.parametrize("downloaded", [True, False])
def test_an_older_download_is_replaced_and_that_is_told(
    hub: FakeHub, svi_story: Run, downloaded: bool
) -> None:
    """What svi-story wrote itself; what the user laid there was the same then, and is no less the user's."""
    get()
    if not downloaded:
        (ROOT / hashes.RECORDS).unlink()
        get()
    victim = ROOT / WAN / SHARD
    old = victim.read_bytes()
    hub.repos[WAN][SHARD] = new = old[:-1] + bytes([old[-1] ^ 1])
    os.utime(victim)
    ended = svi_story("models", "download", "--yes")
    assert (ended.code, "it will be replaced" in ended.err) == ((0, True) if downloaded else (2, False))
    assert victim.read_bytes() == (new if downloaded else old)


def test_a_file_that_appears_while_it_is_downloaded_is_kept(hub: FakeHub) -> None:
    items = download.prepare(ROOT, parts_for("2.0"), Hub())
    victim = ROOT / WAN / SHARD

    def meanwhile(_name: str, _done: int, _all: int) -> None:
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_bytes(b"mine")

    with pytest.raises(RenderError, match="was put there meanwhile, and is kept"):
        download.fetch(ROOT, items, Hub(), meanwhile)
    assert victim.read_bytes() == b"mine"
    part = next(victim.parent.glob(".*.part"))
    assert part.stat().st_size == len(hub.repos[WAN][SHARD])


def test_a_renamed_repository_is_found(hub: FakeHub) -> None:
    hub.repos["epfl-vita/svi-model"] = hub.repos.pop(SVI)
    hub.renamed[SVI] = "epfl-vita/svi-model"
    get()
    assert (ROOT / "Stable-Video-Infinity/version-2.0").is_dir()


@pytest.mark.parametrize(
    "name", ["high_noise_model/../../../evil.safetensors", "/high_noise_model/a.safetensors"]
)
def test_a_hub_cannot_write_elsewhere(hub: FakeHub, name: str) -> None:
    hub.repos[WAN][name] = b"evil"
    get()
    assert not list(Path().rglob("evil*"))
    assert not Path("/high_noise_model").exists()


# --- the command


def test_the_command_tells_all_before_and_gives_the_files(hub: FakeHub, svi_story: Run) -> None:
    ended = svi_story("models", "download", "--variant", "2.0", "--yes", "--models", ROOT)
    assert ended.code == 0, ended.err
    told = ended.err
    for word in (WAN, "apache-2.0", SVI, "mit", CONVERTED, "see the repository", "models/Wan-AI", "free"):
        assert word in told
    assert sorted(ended.out.splitlines()) == sorted(f"{ROOT}/{name}" for name in files_of(ROOT))
    assert svi_story("models", "check").code == 0
    again = svi_story("models", "download")
    assert (again.code, again.out) == (0, ended.out)
    assert "15 of 15 files are there" in again.err


def test_without_a_terminal_nothing_starts_unasked(hub: FakeHub, svi_story: Run) -> None:
    ended = svi_story("models", "download")
    assert (ended.code, ended.out) == (2, "")
    assert "--yes" in ended.err
    assert hub.reads() == []
    assert not ROOT.exists()


@pytest.mark.parametrize("words", [("--variant", "3.0"), ("--preset", "faster")])
def test_wrong_words_are_usage_errors(hub: FakeHub, svi_story: Run, words: tuple[str, ...]) -> None:
    assert svi_story("models", "download", *words).code == 2
    assert hub.asked == []


def test_what_was_downloaded_is_known_to_check(hub: FakeHub, svi_story: Run) -> None:
    get()
    found = json.loads(svi_story("models", "check", "--json").out)
    known = {Path(each["file"]).name: each["known"] for each in found["files"]}
    assert known["Wan2.1_VAE.safetensors"] == f"{CONVERTED} at 0123456789ab"
    vae = ROOT / CONVERTED / "Wan2.1_VAE.safetensors"
    data = bytearray(vae.read_bytes())
    data[-1] ^= 1
    vae.write_bytes(data)
    ended = svi_story("models", "check")
    assert ended.code == 1
    assert f"{vae}: is not what was downloaded from {CONVERTED}" in ended.err


# --- interruptions


class Interruption:
    """Progress that is interrupted when so much of a file is there."""

    def __init__(self, name: str, after: int) -> None:
        self.name, self.after = name, after

    def __call__(self, name: str, done: int, total: int) -> None:
        if name.endswith(self.name) and self.after <= done < total:
            raise KeyboardInterrupt


def test_an_interrupted_file_goes_on_where_it_was(hub: FakeHub) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(progress=Interruption(SHARD, 300_000))
    (part,) = parts()
    have = part.stat().st_size
    assert 0 < have < len(hub.repos[WAN][SHARD])
    assert not (ROOT / WAN / SHARD).exists()
    hub.asked.clear()
    told: list[int] = []
    get(progress=lambda name, done, _: told.append(done) if name.endswith(SHARD) else None)
    assert told[0] == have
    assert told[-1] == len(hub.repos[WAN][SHARD])
    assert set(hub.ranges(SHARD)) == {f"bytes={have}-"}
    assert (ROOT / WAN / SHARD).read_bytes() == hub.repos[WAN][SHARD]
    assert not parts()


def test_a_killed_download_goes_on_where_it_was(hub: FakeHub, tmp_path: Path) -> None:
    hub.stop[SHARD] = 500_000
    program = (
        "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 10_000\n"
        "from svi_story.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "models", "download", "--yes"]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (parts(SHARD) and parts(SHARD)[0].stat().st_size > 400_000):
            assert process.poll() is None
            hub.stopped.wait(0.05)
        process.send_signal(signal.SIGKILL)
    have = parts(SHARD)[0].stat().st_size
    hub.stop.clear()
    hub.asked.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(hub.ranges(SHARD)) == {f"bytes={have}-"}
    assert (ROOT / WAN / SHARD).read_bytes() == hub.repos[WAN][SHARD]
    assert f"{Path(SHARD)}: downloaded" in done.stderr
    assert not (tmp_path / "hf").exists()


def test_a_hub_that_gives_no_ranges_starts_the_file_again(hub: FakeHub) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(progress=Interruption(SHARD, 300_000))
    hub.no_ranges = True
    get()
    assert (ROOT / WAN / SHARD).read_bytes() == hub.repos[WAN][SHARD]


def test_a_lost_connection_is_taken_up_again(hub: FakeHub) -> None:
    hub.cut[SHARD] = 100_000
    get()
    assert (ROOT / WAN / SHARD).read_bytes() == hub.repos[WAN][SHARD]
    assert len(set(hub.ranges(SHARD))) > 5


def test_a_connection_lost_for_good_keeps_what_there_is(hub: FakeHub) -> None:
    hub.cut[SHARD] = 0
    with pytest.raises(RenderError, match=r"cannot be reached.*resumes where it stopped"):
        get()
    hub.cut.clear()
    assert SHARD in get()


def test_what_was_begun_of_another_version_is_removed(hub: FakeHub) -> None:
    with pytest.raises(KeyboardInterrupt):
        get(progress=Interruption(SHARD, 300_000))
    hub.repos[WAN][SHARD] = hub.repos[WAN][SHARD][:-1] + b"!"
    get()
    assert (ROOT / WAN / SHARD).read_bytes() == hub.repos[WAN][SHARD]
    assert not parts()


def test_what_was_begun_is_a_file(hub: FakeHub, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    for put in (os.mkfifo, lambda part: part.symlink_to(other), lambda part: part.symlink_to("nowhere")):
        with pytest.raises(KeyboardInterrupt):
            get(progress=Interruption(SHARD, 300_000))
        (part,) = parts()
        part.unlink()
        put(part)
        get()
        assert (ROOT / WAN / SHARD).read_bytes() == hub.repos[WAN][SHARD]
        assert not parts()
        (ROOT / WAN / SHARD).unlink()
    assert other.read_bytes() == b"other"


def test_two_downloads_into_one_folder_do_not_mix(hub: FakeHub, svi_story: Run) -> None:
    from filelock import FileLock

    ROOT.mkdir()
    with FileLock(ROOT / download.LOCK):
        ended = svi_story("models", "download", "--yes")
    assert ended.code == 2
    assert "another download" in ended.err


# --- files that are wrong


@pytest.mark.parametrize("fault", ["short", "wrong"])
@pytest.mark.parametrize("name", [SHARD, "google/umt5-xxl/tokenizer.json"])
def test_a_wrong_file_is_removed_and_told(hub: FakeHub, fault: str, name: str) -> None:
    getattr(hub, fault).add(name)
    with pytest.raises(RenderError, match=r"what the hub sent has .* it was removed"):
        get()
    assert not parts()
    assert not list(ROOT.rglob(Path(name).name)) or name == SHARD
    getattr(hub, fault).clear()
    get()
    assert not lacking("2.0")


# --- what stands in the way


def refused(svi_story: Run, *words: str) -> str:
    """What the command says when it cannot start."""
    ended = svi_story("models", "download", "--yes", *words)
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert "Traceback" not in ended.err
    assert not ROOT.exists()
    return str(ended.err)


def test_a_gated_repository_is_told_before_anything_starts(
    hub: FakeHub, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(SVI)
    hub.token = "hf_right"
    told = refused(svi_story)
    assert f"{SVI}: is gated: ask for access at https://huggingface.co/{SVI}, then log in" in told
    assert hub.reads() == []
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert svi_story("models", "download", "--yes").code == 0


def test_a_wrong_token_is_told(hub: FakeHub, svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    told = refused(svi_story)
    assert "the hub does not take your token: log in with `hf auth login`" in told
    assert "hf_wrong" not in told


def test_a_missing_repository_and_a_missing_file_are_told_together(hub: FakeHub, svi_story: Run) -> None:
    del hub.repos[WAN]
    del hub.repos[CONVERTED]["Wan2.1_VAE.safetensors"]
    told = refused(svi_story)
    assert told.count(f"{WAN}: the hub has no such repository") == 1
    assert f"{CONVERTED}: the hub has no Wan2.1_VAE.safetensors" in told


@pytest.mark.parametrize(("status", "words"), [(403, "may not read"), (429, "a pause"), (500, "answers 500")])
def test_an_answer_that_is_none_is_told(hub: FakeHub, svi_story: Run, status: int, words: str) -> None:
    hub.status[SVI] = status
    assert words in refused(svi_story)


def test_a_file_that_fails_on_the_way_keeps_the_rest(hub: FakeHub, svi_story: Run) -> None:
    hub.status["low_noise_model/config.json"] = 500
    ended = svi_story("models", "download", "--yes")
    assert ended.code == 1
    assert f"{WAN}/low_noise_model/config.json: the hub answers 500" in ended.err
    assert (ROOT / WAN / SHARD).exists()
    hub.status.clear()
    assert svi_story("models", "download", "--yes").code == 0


def test_no_connection_is_told(hub: FakeHub, svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    told = refused(svi_story)
    assert "the hub cannot be reached" in told
    assert "check the connection, the proxy and HF_ENDPOINT" in told


def test_offline_mode_is_told(hub: FakeHub, svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids the hub; unset it to download" in refused(svi_story)


def test_without_huggingface_hub_the_cure_is_told(svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'svi-story[svi]'" in refused(svi_story)


def test_too_little_space_is_told_before_anything_starts(
    hub: FakeHub, svi_story: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 2 * 10**6))
    told = refused(svi_story)
    assert "needs 0.0 GB, and 0.0 GB are free" in told
    assert hub.reads() == []


def test_a_disk_that_fills_up_keeps_what_there_is(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __call__(self, name: str, done: int, total: int) -> None:
            if name.endswith(SHARD) and done > 300_000:
                raise OSError(28, "No space left on device")

    with pytest.raises(RenderError, match="no space is left"):
        get(progress=Full())
    assert parts()
    get()
    assert not lacking("2.0")


def test_a_folder_that_cannot_be_written_is_told(hub: FakeHub, svi_story: Run) -> None:
    ROOT.write_text("a file")
    ended = svi_story("models", "download", "--yes")
    assert ended.code == 2
    assert "models" in ended.err
    assert "Traceback" not in ended.err


def test_records_that_are_broken_are_done_without(hub: FakeHub) -> None:
    get()
    for text in ("", "[]", '{"a": 1}', '{"a": {"expected": {"colour": 1}}}', "{"):
        (ROOT / hashes.RECORDS).write_text(text)
        assert DownloadRecords.load(ROOT).known == {}
        assert get() == []


def test_the_hub_is_asked_by_this_command_alone(hub: FakeHub, svi_story: Run) -> None:
    shutil.copytree(MODELS, ROOT)
    svi_story("models", "list")
    svi_story("models", "check")
    assert hub.asked == []


def test_no_download_can_end_differently(hub: FakeHub) -> None:
    """Interrupted again and again, anywhere, the folder is in the end the same."""
    rounds, left = 0, 0

    def interrupt(_name: str, _done: int, _total: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    while True:
        rounds, left = rounds + 1, 30
        try:
            get(progress=interrupt)
        except KeyboardInterrupt:
            continue
        break
    assert rounds > 10
    assert files_of(ROOT).items() <= (files_of(MODELS) | PIECES).items()
    assert not lacking("2.0")


def test_an_input_error_is_raised_for_a_hub_without_sizes(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fake_hub.listed", lambda name, data: {"rfilename": name})
    with pytest.raises(InputError, match="states no sizes"):
        get()
