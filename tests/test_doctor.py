"""The doctor: a finding for everything that rendering needs, a cure for each lack, a trial of two clips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import svi_support as support
import torch
from PIL import Image

from svi_story.engines.svi import device
from svi_story.engines.svi.weights.locate import find_weights
from svi_story.errors import InputError, RenderError
from svi_story.render import doctor, smoke
from svi_story.render.doctor import Check
from svi_story.units import GIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from conftest import Ended

    Run = Callable[..., Ended]

TINY = ("--size", "80x64", "--frames", "13", "--steps", "2", "--dtype", "float32")


@pytest.fixture(autouse=True)
def bare(own_ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights but those of the command line, and no GPU, whatever this machine has."""
    monkeypatch.delenv("SVI_STORY_MODELS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "ask_nvidia_smi", lambda: "")


def findings(svi_story: Run, *words: object, code: int = 0) -> dict[str, Check]:
    """What the doctor finds, by name."""
    ended = svi_story("doctor", "--json", *words)
    assert ended.code == code, (ended.out, ended.err)
    told = json.loads(ended.out)
    assert told["ready"] == (code == 0)
    assert all(each.pop("cure") == each["remedy"] for each in told["findings"]), "the old name"
    return by_name(Check(**each) for each in told["findings"])


def by_name(found: Iterable[Check]) -> dict[str, Check]:
    return {each.name: each for each in found}


def picture_of(found: Check) -> Any:
    """The pixels of the picture that a finding names."""
    with Image.open(found.detail) as picture:
        return np.asarray(picture)


# --- the command


def test_a_machine_for_previews_needs_neither_torch_nor_weights(svi_story: Run) -> None:
    found = findings(svi_story, "--engine", "animatic")
    assert set(found) == {"Python", "ffmpeg", "fonts", "disk for films", "disk for the cache"}
    assert {each.state for each in found.values()} <= {"ok", "warn"}


def test_every_lack_has_a_cure(svi_story: Run) -> None:
    found = findings(svi_story, code=1)
    lacking = {name for name, each in found.items() if each.state == "lacking"}
    assert lacking == {"GPU", "weights of SVI 2.0", "weights of SVI 2.0-pro"}
    assert all(each.remedy for each in found.values() if each.state != "ok")
    ended = svi_story("doctor", "--models", "my models")
    assert ended.code == 1
    assert (
        "GPU: use a machine with an NVIDIA GPU and its driver; a preview needs none: --engine animatic"
        in ended.out
    )
    download = "svi-story models download --variant 2.0-pro --models 'my models'"
    assert f"{download}; every problem: svi-story models check --models 'my models'\n" in ended.out
    assert "not yet" in ended.err


def test_the_tiny_weights_render_on_a_cpu(svi_story: Run) -> None:
    found = findings(svi_story, "--models", support.MODELS, "--full")
    assert found["GPU"].state == "warn"
    assert "these small weights run on the CPU" in found["GPU"].detail
    assert found["weights of SVI 2.0"].detail == "11 files, 0.0 GB, headers complete"
    assert found["every byte"] == Check("every byte", "ok", "13 files read, 0 known by their hash", "")


def test_one_variant_is_enough(svi_story: Run, tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    support.lora_file(root, "high", "2.0-pro").unlink()
    found = findings(svi_story, "--models", root)
    assert found["weights of SVI 2.0"].state == "ok"
    assert found["weights of SVI 2.0-pro"].state == "warn"
    support.lora_file(root, "high").write_bytes(b"cut")
    found = findings(svi_story, "--models", root, code=1)
    assert found["weights of SVI 2.0"].state == "lacking"
    assert "cut short" in found["weights of SVI 2.0"].detail


def test_full_finds_what_headers_do_not_show(svi_story: Run, tmp_path: Path) -> None:
    root = support.copy_models(tmp_path)
    support.change_file(root / support.VAE_FILE, lambda t: {k: v * float("nan") for k, v in t.items()})
    assert findings(svi_story, "--models", root)["weights of SVI 2.0"].state == "ok"
    found = findings(svi_story, "--models", root, "--full", code=1)
    assert "holds NaN" in found["every byte"].detail


def test_without_torch_the_doctor_still_works() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from svi_story.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "doctor", "--json", "--models", str(support.MODELS), "--smoke"]
    environment = {**os.environ, "PATH": "/nowhere"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)["findings"]
    found = by_name(Check(**{name: each[name] for name in each if name != "cure"}) for each in told)
    assert "cannot be imported" in found["torch"].detail
    assert "pip install torch" in found["torch"].remedy
    assert "pip install 'svi-story[svi]'" in found["torch"].remedy
    assert found["weights of SVI 2.0"].state == "ok"
    assert found["smoke"].state == "lacking"
    assert "attention" not in found


def test_wrong_words_are_usage_errors(svi_story: Run) -> None:
    assert svi_story("doctor", "--engine", "sora").code == 2
    assert svi_story("doctor", "--smoke", "--variant", "3").code == 2
    unused = svi_story("doctor", "--size", "832x480")
    assert (unused.code, "--size: is for --smoke" in unused.err) == (2, True)
    assert svi_story("doctor", "--smoke", "--dtype", "float16").code == 2


# --- single findings


def test_a_missing_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[str, str]:
        raise RenderError("no ffmpeg found")

    monkeypatch.setattr("svi_story.cut.ffmpeg.encoder_versions", missing)
    found = doctor.check_ffmpeg()
    assert (found.state, found.detail) == ("lacking", "no ffmpeg found")
    assert "imageio-ffmpeg" in found.remedy


def test_missing_fonts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("svi_story.media.text.FOLDER", tmp_path)
    assert doctor.check_fonts().state == "lacking"


@pytest.mark.parametrize(("free", "state"), [(GIB // 4, "lacking"), (2 * GIB, "warn"), (20 * GIB, "ok")])
def test_disk_space(free: int, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert doctor.check_disk("disk", tmp_path / "not" / "there").state == state
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert doctor.check_disk("disk", tmp_path / "file" / "films").state == "lacking"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert doctor.check_disk("disk", tmp_path).state == "lacking"


def test_memory_beside_an_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * GIB, available=20 * GIB))
    monkeypatch.setattr(device, "free_ram", lambda: 20 * GIB)
    assert doctor.check_memory(0).state == "ok"
    assert doctor.check_memory(10 * GIB).state == "ok"
    found = doctor.check_memory(27 * GIB)
    assert found.state == "warn"
    assert found.detail == "20.0 GiB of 32.0 GiB available; an expert takes 27.0 GiB in bfloat16"


def test_what_an_expert_takes_comes_from_its_headers(tmp_path: Path) -> None:
    weights = find_weights(support.folders())
    stored = sum(file.stat().st_size for file in weights.used["high"].files)
    assert stored * 0.45 < doctor.expert_bytes(weights) < stored * 0.5
    assert doctor.expert_bytes(find_weights(support.folders(tmp_path))) == 0


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "ftfy" else "1")
    found = by_name(doctor.check_torch(0))
    assert found["libraries"].state == "lacking"
    assert "ftfy" in found["libraries"].detail


@pytest.mark.parametrize(
    ("build", "driver", "detail", "cure"),
    [
        ("", "", "no NVIDIA driver was found", "--engine animatic"),
        ("", "A100, 81920 MiB, driver 570", "built for the CPU alone; A100", "pip install torch --index-url"),
        (
            "12.8",
            "A100, 81920 MiB, driver 400",
            "torch finds no GPU; A100",
            "the driver is too old for CUDA 12.8",
        ),
    ],
)
def test_why_there_is_no_gpu(
    build: str, driver: str, detail: str, cure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ask_nvidia_smi", lambda: driver)
    found = doctor.check_gpu(28 * GIB, cuda_build=build)
    assert found.state == "lacking"
    assert detail in found.detail
    assert cure in found.remedy
    assert doctor.check_gpu(0, cuda_build=build).state == "lacking"


@pytest.mark.parametrize(("major", "state"), [(7, "warn"), (9, "ok")])
def test_a_gpu(major: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (130 * GIB, 139 * GIB))
    monkeypatch.setattr(doctor, "ask_nvidia_smi", lambda: "NVIDIA H200, 143771 MiB, driver 570.1")
    found = doctor.check_gpu(0, cuda_build="12.8")
    assert found.state == state
    assert found.detail == (f"NVIDIA H200, 130.0 GiB of 139.0 GiB free, compute {major}.0, driver 570.1")


def test_a_mac_makes_animatics(svi_story: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    found = findings(svi_story, "--engine", "animatic")
    assert found["Python"].state == "warn"
    assert "Animatics, reviews and exports should work" in found["Python"].remedy
    found = findings(svi_story, code=1)
    assert found["GPU"].state == "lacking"
    assert "MPS" in found["GPU"].detail
    assert "--engine animatic" in found["GPU"].remedy


def test_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def answer(text: bytes) -> Callable[..., Any]:
        return lambda *_, **__: SimpleNamespace(stdout=text)

    monkeypatch.setattr(subprocess, "run", answer(b"NVIDIA L4, 23034 MiB, 550.54\nother\n"))
    assert doctor.ask_nvidia_smi() == "NVIDIA L4, 23034 MiB, driver 550.54"
    for text in (b"", b"No devices were found\n", b"\xff"):
        monkeypatch.setattr(subprocess, "run", answer(text))
        assert doctor.ask_nvidia_smi() == ""


def test_the_attention_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor.check_attention()
    assert (found.state, found.detail) == ("ok", "torch-flash (these run: torch-flash, torch-math)")
    monkeypatch.setattr("svi_story.engines.svi.attention.choose_kernel", lambda *_: "flash-attn-2")
    found = doctor.check_attention()
    assert found.state == "lacking"
    assert "flash-attn-2 cannot be used here" in found.detail
    assert "--no-build-isolation" in found.remedy


def test_torch_s_own_kernel_on_a_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("svi_story.engines.svi.attention.choose_kernel", lambda *_: "torch-flash")
    monkeypatch.setattr(doctor, "_kernel_problem", lambda *_: "")
    found = doctor.check_attention()
    assert found.state == "warn"
    assert "the authors saw artifacts without flash-attn" in found.detail


# --- the trial of two clips


@pytest.mark.parametrize("variant", support.VARIANTS)
def test_the_trial_says_what_it_shows_and_no_more(svi_story: Run, variant: str, tmp_path: Path) -> None:
    words = ("--models", support.MODELS, "--smoke", *TINY, "--variant", variant, "-o", tmp_path / "films")
    found = findings(svi_story, *words)
    trial = {name.removeprefix("smoke: "): each for name, each in found.items() if "smoke" in name}
    assert set(trial) == {"clips", "LoRA", "conditioning", "anchor read", "return", "pictures"}
    assert {each.state for each in trial.values()} == {"ok"}
    assert "3 clips of 13 frames at 80x64, 2 steps" in trial["clips"].detail
    assert "high: 20 layers, not known by its hash; low: 20 layers" in trial["LoRA"].detail
    assert smoke.NOT_JUDGED in trial["return"].detail
    assert ("then zeros" if variant == "2.0-pro" else "then the anchor") in trial["conditioning"].detail
    assert picture_of(trial["pictures"]).shape == (4 * 64, 3 * 80, 3)


def test_the_trial_takes_an_image(svi_story: Run, tmp_path: Path) -> None:
    shutil.copy(support.DATA / "anchor.png", tmp_path / "cat.png")
    words = ("--models", support.MODELS, "--smoke", *TINY, "-r", "cat.png", "--frames", 9)
    found = findings(svi_story, *words)
    assert np.array_equal(picture_of(found["smoke: pictures"])[:64, :80], support.anchor_picture())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--size", "81x64"), "doctor --smoke: resolution"),
        (("--frames", "12"), "4k+1"),
        (("--reference", "nowhere.png"), "nowhere.png"),
        (("--models", "nowhere"), "not found"),
    ],
)
def test_a_trial_that_cannot_start_is_a_finding(svi_story: Run, words: tuple[str, ...], told: str) -> None:
    models = () if "--models" in words else ("--models", support.MODELS)
    found = findings(svi_story, *models, "--smoke", *TINY, *words, code=1)
    assert found["smoke"].state == "lacking"
    assert told in found["smoke"].detail


def test_experts_that_do_not_read_the_anchor_are_found() -> None:
    frames = np.zeros((3, 64, 80, 3), dtype=np.uint8)
    some, other = (smoke.RenderedClip({"latents": np.arange(8.0) + add}, frames) for add in (0, 1))
    assert smoke.check_reading(some, some).state == "lacking"
    assert smoke.check_reading(some, other).state == "ok"


def test_the_trial_takes_a_board(svi_story: Run, tmp_path: Path) -> None:
    shutil.copy(support.DATA / "anchor.png", tmp_path / "cat.png")
    board: dict[str, Any] = {"version": 1, "reference": "cat.png", "resolution": "80x64"}
    board["engine"] = {"variant": "2.0-pro", "steps": 2, "max_frames": 9, "guidance": 1}
    board["clips"] = [{"prompt": f"The cat {does}."} for does in ("leaves", "is away", "returns")]
    later = {"prompt": "The sea.", "transition": "cut"}
    Path("film.yaml").write_text(json.dumps({**board, "clips": [*board["clips"], later]}), "utf-8")
    words = ("--models", support.MODELS, "--smoke", "--dtype", "float32", "--board")
    found = findings(svi_story, *words, "film.yaml")
    assert "4 clips of 9 frames at 80x64, 2 steps" in found["smoke: clips"].detail
    assert "SVI 2.0-pro" in found["smoke: LoRA"].detail
    assert found["smoke: return"].state == "warn", "random weights bring nothing back"
    assert smoke.NOT_JUDGED not in found["smoke: return"].detail
    assert picture_of(found["smoke: pictures"]).shape == (5 * 64, 3 * 80, 3)
    Path("one.yaml").write_text(json.dumps({**board, "clips": [board["clips"][0], later]}), "utf-8")
    assert "its first chain has one clip" in findings(svi_story, *words, "one.yaml", code=1)["smoke"].detail
    twice = svi_story("doctor", *words, "film.yaml", "--steps", 3)
    assert (twice.code, "--steps: is what --board says already" in twice.err) == (2, True)


@pytest.mark.parametrize("variant", support.VARIANTS)
def test_a_conditioning_that_is_arranged_wrongly_is_found(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from svi_story.engines.base import Carry
    from svi_story.engines.svi import conditioning

    anchor = support.anchor_picture()
    weights = find_weights(support.folders())
    latents = np.random.default_rng(0).normal(size=(1, 16, 4, 8, 10)).astype(np.float32)
    carry = Carry("svi", {"latents": latents}, [np.ascontiguousarray(anchor[::-1])])
    one = support.segment(variant=variant)

    def state() -> str:
        return smoke.check_conditioning(weights, one, carry, anchor).state

    assert state() == "ok"
    real = conditioning.condition
    wrong: dict[str, Callable[..., torch.Tensor]] = {
        "no mask": lambda y: torch.cat([y[:, :4] * 0, y[:, 4:]], dim=1),
        "a mask on all": lambda y: torch.cat([y[:, :4] * 0 + 1, y[:, 4:]], dim=1),
        "no anchor": lambda y: torch.cat([y[:, :4], y[:, 4:] * 0], dim=1),
        "the other order": lambda y: torch.cat([y[:, :4], y[:, 4:].flip(2)], dim=1),
    }
    for spoil in wrong.values():
        monkeypatch.setattr(conditioning, "condition", lambda *args, spoil=spoil: spoil(real(*args)))
        assert state() == "lacking"
    other: Any = support.sampler("2.0-pro" if variant == "2.0" else "2.0")
    monkeypatch.setattr(
        conditioning, "condition", lambda segment, *rest: real(replace(segment, options=other), *rest)
    )
    assert state() == "lacking"


def test_nothing_is_left_behind(svi_story: Run, tmp_path: Path) -> None:
    findings(svi_story, "--models", support.MODELS, code=0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_small_weights_are_not_taken_for_the_14b_ones() -> None:
    assert not smoke.is_full_size(find_weights(support.folders()))
    with pytest.raises(InputError):
        smoke.is_full_size(find_weights(support.folders(Path("nowhere"))))
