"""The engine at its full size on a GPU that does not exist (fake_gpu.py): `memory.py` claims what lives.

`make slow` runs it with six of the 40 layers and few frames, `make full-size` runs all of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL, LARGE = [832, 480], [1280, 720]
FEW: list[dict[str, Any]] = [
    {
        "mode": "stream",
        "weights": "int8",
        "vram": 4.4,
        "ram": 13,
        "size": SMALL,
        "plan": "stream keep=True resident_blocks=3",
    },
    {"mode": "stream", "vram": 5.2, "ram": 12, "size": SMALL, "plan": "stream keep=False resident_blocks=2"},
]
FULL: list[dict[str, Any]] = [
    {"mode": "auto", "weights": weights, "vram": vram, "ram": ram, "size": size, "plan": plan}
    for weights, size, vram, ram, plan in (
        ("bf16", SMALL, 15, 29, "stream keep=False resident_blocks=11"),
        ("bf16", LARGE, 15, 60, "stream keep=True resident_blocks=3"),
        ("bf16", SMALL, 23.5, 60, "stream keep=True resident_blocks=24"),
        ("bf16", LARGE, 23.5, 29, "stream keep=False resident_blocks=16"),
        ("bf16", SMALL, 47, 60, "offload keep=True resident_blocks=0"),
        ("bf16", LARGE, 47, 29, "offload keep=False resident_blocks=0"),
        ("bf16", SMALL, 79, 60, "resident keep=True resident_blocks=0"),
        ("bf16", LARGE, 79, 60, "resident keep=True resident_blocks=0"),
        ("int8", SMALL, 11, 29, "stream keep=False resident_blocks=13"),
        ("int8", LARGE, 15, 60, "stream keep=True resident_blocks=8"),
        ("int8", SMALL, 23.5, 60, "offload keep=True resident_blocks=0"),
        ("int8", LARGE, 23.5, 29, "stream keep=False resident_blocks=34"),
        ("int8", SMALL, 47, 29, "resident keep=True resident_blocks=0"),
        ("int8", LARGE, 47, 60, "offload keep=True resident_blocks=0"),
    )
]


def measured(folder: Path, cases: list[dict[str, Any]], layers: int, frames: int) -> list[Any]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to build a device guard")
    given = [json.dumps({**case, "layers": layers, "frames": frames}) for case in cases]
    command = [sys.executable, str(Path(__file__).with_name("fake_gpu.py")), str(folder), *given]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("cases", "layers", "frames"),
    [
        (FEW[:1], 6, 9),  # which takes a quarter of a minute: one shows devices, shapes, types and memory
        pytest.param(FEW[1:], 6, 9, marks=pytest.mark.slow),
        pytest.param(FULL, 40, 81, marks=pytest.mark.full_size),
    ],
    ids=["few layers", "few layers more", "all layers"],
)
def test_what_is_claimed_is_what_lives(
    tmp_path: Path, cases: list[dict[str, Any]], layers: int, frames: int
) -> None:
    for case, phases in zip(cases, measured(tmp_path, cases, layers, frames), strict=True):
        assert phases[-1]["plan"] == case["plan"]
        for phase in phases:
            assert phase["gpu"] == pytest.approx(phase["claimed_gpu"], rel=0.05), (case, phase)
            assert phase["ram"] == pytest.approx(phase["claimed_ram"], rel=0.05, abs=2**28), (case, phase)
        sampling = next(phase for phase in phases if phase["phase"] == "sampling")
        assert sampling["loading_gpu"] <= 1.05 * sampling["claimed_gpu"]
        copied, claimed = sampling["copied"], sampling["claimed_copied"]
        assert 0.95 * claimed <= copied <= 1.05 * claimed + sampling["ahead"] + 2**28, (case, sampling)
        claimed = sampling["claimed_back"]  # weights go to RAM once, after they were computed on the GPU
        assert sampling["back"] == pytest.approx(claimed, rel=0.05, abs=2**28), (case, sampling)
        assert sampling["waits"] == [0, 0], "a step copies nothing from the GPU"
        assert {"cudnn", "attention", "device", "torch", "cuda"} <= phases[-1]["environment"].keys()
