"""Everything that only a GPU can tell, in one command of less than ten minutes on an H200.

    python benchmarks/gpu_day.py --out DIR

The parts run in order, each in a process of its own and with a deadline. Figures are kept as they come: run
the same command again and what is missing is measured. DIR then has `gpu-day.json` and `gpu-day.md`. Needs
torch, transformers and what `gpu_wheels.py` downloads; no network, no weights. `--tiny` runs everything at a
size that a CPU can do, which tells nothing but that the script works.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE = Path(__file__).parent
BUDGET = 570
"""Seconds for everything together."""
PACKAGES = (
    *("torch", "triton", "diffusers", "transformers", "accelerate", "safetensors", "av", "numpy"),
    *("flash-attn", "flash_attn_3", "sageattention", "nvidia-cudnn-cu13", "nvidia-cublas"),
)


@dataclass(frozen=True)
class Part:
    """Some measurements that belong together."""

    name: str
    deadline: int
    """Seconds."""
    question: str


PARTS = (
    Part(
        "step",
        190,
        "Seconds per guided step at 480p: eager, diffusers in the same process, compiled, by kernel",
    ),
    Part("film", 60, "A small film killed and resumed: the same bytes?"),
    Part("memory", 140, "Each memory mode phase by phase beside what memory.py claims; decoding in strips"),
    Part("oom", 30, "Memory runs out once in each phase: the same frames?"),
    Part("int8", 50, "8-bit weights, phase by phase"),
    Part("large", 110, "A pass at 720p, eager and compiled"),
    Part("tests", 30, "The tests that need a GPU"),
)
GOALS = (
    "Goals: 5.0 s per guided step at 480p in bf16, compiled; 1.5 times as fast as diffusers' pipeline in the "
    "same process. *live* is the most that torch held, *claimed* what `memory.py` says without its margin, "
    "*planned* with it. Weights are random in `step` and `large`; in `memory` and `int8` they are zero, with "
    "which a GPU computes faster."
)


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    seconds: float
    said: str
    """Done, out of time, or the exit code."""


def run_part(part: Part, out: Path, device: str, scale: str, seconds: float) -> Outcome:
    """Run a part in a process group of its own, and end that when its time is up."""
    paths = (HERE.parent, HERE.parent / "tests", *filter(None, [os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
    }
    start = time.monotonic()
    with (out / f"{part.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_parts.py"), part.name, str(out), device, scale],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
            said = "done" if code == 0 else f"ended with {code}, see {part.name}.log"
        except subprocess.TimeoutExpired:
            said = f"out of time after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # also what it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(round(time.monotonic() - start, 1), said)


def machine() -> dict[str, str]:
    """The GPU, and the versions that its figures depend on."""
    told = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            told[package] = version(package)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        told["gpu"] = subprocess.run(
            query, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    commit = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        told["commit"] = subprocess.run(
            commit, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    return told


def report(out: Path, outcomes: dict[str, Outcome]) -> None:
    """Write what is known so far, as JSON and as Markdown."""
    measured = {part.name: _rows(out / f"{part.name}.json") for part in PARTS}
    ends = {name: {"seconds": each.seconds, "said": each.said} for name, each in outcomes.items()}
    known = {"machine": machine(), "outcomes": ends, "measured": measured}
    (out / "gpu-day.json").write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
    (out / "gpu-day.md").write_text("\n".join(_page(known)) + "\n", "utf-8")


def _rows(path: Path) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return rows


def _outcomes(out: Path) -> dict[str, Outcome]:
    """How the parts of an earlier run with the same folder ended."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads((out / "gpu-day.json").read_text("utf-8"))["outcomes"]
        return {name: Outcome(**outcome) for name, outcome in known.items()}
    return {}


def _page(known: dict[str, Any]) -> Iterator[str]:
    yield from (
        "# A day with a GPU",
        "",
        *(f"- {name}: {told}" for name, told in known["machine"].items()),
        "",
    )
    yield from (GOALS, "")
    for part in PARTS:
        ended = known["outcomes"].get(part.name)
        said = f"{ended['said']}, {ended['seconds']} s" if ended else "not run"
        yield from (f"## {part.name}: {part.question}", "", f"({said})", "")
        rows = known["measured"][part.name]
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        columns = [
            column for column in columns if any(row.get(column) not in (None, "") for row in rows.values())
        ]
        if rows:
            yield from _grid(
                ["what", *columns], [[name, *map(row.get, columns)] for name, row in rows.items()]
            )
            yield ""


def _grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(_shown(cell) for cell in row) + " |"


def _shown(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "/").replace("\n", " ")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="everything at a size that a CPU can do")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for everything together")
    chosen = parser.parse_args(arguments)
    out: Path = chosen.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _outcomes(out)
    asked = [part for part in PARTS if not chosen.parts or part.name in chosen.parts]
    end = time.monotonic() + chosen.seconds
    for part in asked:
        patience = 10 if chosen.tiny else 1  # a busy CPU is no reason to give up
        left = min(patience * part.deadline, end - time.monotonic())
        if left < 1:
            outcomes[part.name] = Outcome(0.0, "not started: no time was left")
            continue
        print(f"{part.name}: {part.question}", file=sys.stderr, flush=True)
        outcomes[part.name] = run_part(part, out, chosen.device, "tiny" if chosen.tiny else "full", left)
        print(f"{part.name}: {outcomes[part.name].said}", file=sys.stderr, flush=True)
        report(out, outcomes)
    report(out, outcomes)
    return 0 if all(outcomes[part.name].said == "done" for part in asked) else 1


if __name__ == "__main__":
    sys.exit(main())
