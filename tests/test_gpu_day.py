"""The script for the first GPU at hand (benchmarks/gpu_day.py), at a size that a CPU can do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the measurements."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("gpu_parts")


def run(parts: Any, folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """The figures of a part, as they are kept."""
    kept = folder / f"{name}.json"
    context = parts.Context(torch.device("cpu"), parts.SCALES["tiny"], parts.Notes(kept), folder)
    parts.PARTS[name](context)
    rows: dict[str, dict[str, Any]] = json.loads(kept.read_text("utf-8"))
    return rows


def test_seconds_of_a_step_by_ours_by_diffusers_compiled_and_by_kernel(parts: Any, tmp_path: Path) -> None:
    rows = run(parts, tmp_path, "step")
    for name in ("eager, torch-flash", "diffusers' pipeline", "compiled, torch-flash"):
        assert rows[name]["s per guided step"] > 0
    assert rows["compiled, torch-flash"]["% difference from eager"] == pytest.approx(0, abs=1e-3)
    assert "flash-attn" in rows["eager, flash-attn-2"]["error"]


def test_what_is_known_is_not_measured_again(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "oom.json"
    notes = parts.Notes(kept)
    notes.take("one", lambda: {"s": 1.0})
    notes.take("two", lambda: 1 / 0)
    again = parts.Notes(kept)
    again.take("one", lambda: {"s": 2.0})
    assert again.rows["two"]["error"] == "ZeroDivisionError: division by zero"
    again.take("two", lambda: {"s": 3.0})
    assert json.loads(kept.read_text("utf-8")) == {"one": {"s": 1.0}, "two": {"s": 3.0}}


def test_each_phase_of_each_memory_mode_beside_what_is_claimed(parts: Any, tmp_path: Path) -> None:
    rows, narrow = (run(parts, tmp_path, name) for name in ("memory", "int8"))
    phases = ("text", "vae", "high", "low", "decode")
    modes = ("resident", "offload", "stream")
    assert all(rows[f"{mode}: {phase}"]["claimed GiB"] > 0 for mode in modes for phase in phases)
    assert rows["offload: low"]["moved GiB"] > 0
    assert rows["resident: together"]["claimed GiB"] >= rows["resident: low"]["claimed GiB"]
    assert rows["decoding, 2 strips"]["largest difference"] < 1e-3
    assert narrow["resident, int8: low"]["claimed GiB"] < rows["resident: low"]["claimed GiB"]
    assert not [row for row in (*rows.values(), *narrow.values()) if "error" in row]


def test_memory_that_runs_out_in_any_phase_changes_no_frame(parts: Any, tmp_path: Path) -> None:
    rows = run(parts, tmp_path, "oom")
    assert list(rows) == ["text", "vae", "sampling", "decode"]
    for phase, row in rows.items():
        assert (row["ran out"], row["same latents"], row["same frames"]) == ("True",) * 3, phase
    assert "memory ran out" in rows["sampling"]["warnings"]


def test_a_part_that_takes_too_long_is_ended_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    earlier = {"outcomes": {"step": {"seconds": 3.0, "said": "done"}}}
    (tmp_path / "gpu-day.json").write_text(json.dumps(earlier), "utf-8")
    given = ["--out", str(tmp_path), "--tiny", "--device", "cpu", "--parts", "film", "--seconds", "1.2"]
    assert import_module("gpu_day").main(given) == 1
    known = json.loads((tmp_path / "gpu-day.json").read_text("utf-8"))
    assert known["outcomes"]["film"]["said"] == "out of time after 1 s"
    assert known["machine"]["torch"] == torch.__version__
    page = (tmp_path / "gpu-day.md").read_text("utf-8")
    assert "out of time after 1 s" in page
    assert page.count("(not run)") == 5
    assert page.count("(done, 3.0 s)") == 1  # of an earlier run


@pytest.mark.slow  # several processes
def test_the_whole_day_in_one_command_and_again(tmp_path: Path) -> None:
    failed = {"killed 1": {"same bytes": "False", "exit code": 1}}  # in an earlier run: it is tried again
    (tmp_path / "film.json").write_text(json.dumps(failed), "utf-8")
    command = [sys.executable, str(BENCHMARKS / "gpu_day.py"), "--out", str(tmp_path), "--tiny"]
    command += ["--device", "cpu", "--parts", "film", "--seconds", "3000"]
    for _ in range(2):
        subprocess.run(command, check=True)
    killed = json.loads((tmp_path / "film.json").read_text("utf-8"))["killed 1"]
    assert killed["same bytes"] == "True"
    assert killed["killed after steps"] + killed["steps then"] < killed["of"] + 12
    assert "| killed 1 |" in (tmp_path / "gpu-day.md").read_text("utf-8")


def test_the_wheels_that_a_machine_with_torch_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    wheels = import_module("gpu_wheels")
    have = wheels.read_versions("torch==2.11.0\ntransformers==5.17.0\nhuggingface_hub==0.1\nnumpy==2.4.0\n")
    needed = wheels.needed(have)
    assert {"diffusers", "av", "pydantic", "pydantic-core", "huggingface-hub"} <= needed.keys()
    assert not {"torch", "transformers", "numpy", "moviepy", "imageio-ffmpeg"} & needed.keys()


def test_it_runs_without_what_is_not_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    modules = {name.replace("-", "_") for name in import_module("gpu_wheels").UNUSED}
    modules = modules - {"opencv_python_headless"} | {"cv2"}
    lines = [
        f"import sys; sys.modules.update(dict.fromkeys({sorted(modules)}))",
        "import gpu_parts, fake_gpu",
    ]
    paths = os.pathsep.join(map(str, (BENCHMARKS.parent, BENCHMARKS, Path(__file__).parent)))
    command = [sys.executable, "-c", "\n".join(lines)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
