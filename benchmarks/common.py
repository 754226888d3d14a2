"""What every benchmark shares: clocks, child processes, the machine, results on the screen and on paper."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    Cell = str | int | float | None

HERE = Path(__file__).parent
RESULTS = HERE / "results"
STORYBOARDS = HERE.parent / "storyboards"
PROGRAM = str(Path(sys.executable).with_name("svi-story"))

QUEUEING = (
    "Other processes share this machine: compare within this run, not with another one's seconds. *queued* "
    "is how long the main thread was ready to run and had no CPU; *wall - queued* is about what an idle "
    "machine takes."
)


@dataclass(frozen=True)
class Took:
    """What something cost: seconds, and the most memory at a time in MB."""

    wall: float
    queued: float
    """Of the wall time, how long the main thread was ready to run while others had the CPUs."""
    cpu: float
    """User and system time, children's included."""
    peak: float = 0.0
    """Of the process and its children together, shared pages counted once; 0 when nobody looked."""
    written: float = 0.0
    """MB that the process and its children wrote to disks; 0 when nobody looked."""

    @property
    def free(self) -> float:
        """About what it takes when nobody else wants a CPU."""
        return max(self.wall - self.queued, 0.0)


def median(runs: Sequence[Took]) -> Took:
    """Field by field."""
    return Took(*(statistics.median(getattr(run, field.name) for run in runs) for field in fields(Took)))


def timed(work: Callable[[], object]) -> Took:
    """What a call costs, in this process and its children."""
    queued, cpu, start = _queued("thread-self"), _cpu(), time.perf_counter()
    work()
    wall = time.perf_counter() - start
    return Took(wall, _queued("thread-self") - queued, _cpu() - cpu)


def run_alone(
    command: Sequence[str | Path], folder: Path, kill_when: Callable[[], bool] | None = None
) -> Took:
    """What a command costs as a process of its own, children included. RuntimeError when it fails.

    With `kill_when` all its processes are killed as soon as that is true; RuntimeError when it never is.
    """
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "SVI_STORY_CACHE"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with _watched(process.pid) as peaks:
            if kill_when:
                _kill_when(process.pid, kill_when)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            wall = time.perf_counter() - start
        queued = _queued(str(process.pid))  # a process that is over, and not yet waited for, still tells
        written = _written(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (-signal.SIGKILL if kill_when else 0):
            log.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}: {log.read()[-2000:].decode()}")
    return Took(wall, queued, usage.ru_utime + usage.ru_stime, max(peaks, default=0.0), written)


def _kill_when(session: int, due: Callable[[], bool]) -> None:
    """Kill a session's processes once it is due, unless its first process ends before."""
    while not os.waitid(os.P_PID, session, os.WEXITED | os.WNOWAIT | os.WNOHANG):
        if due():
            os.killpg(session, signal.SIGKILL)
            return
        time.sleep(0.01)


@contextmanager
def _watched(session: int) -> Iterator[list[float]]:
    """Look at the memory of a session's processes now and then; on an error, end them."""
    peaks: list[float] = []
    over = threading.Event()

    def look() -> None:
        pause = 0.02
        while not over.wait(pause):
            start = time.perf_counter()
            peaks.append(_memory(session))
            pause = max(0.05, 20 * (time.perf_counter() - start))  # looking costs at most 5 % of a core

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    except BaseException:
        os.killpg(session, signal.SIGKILL)
        raise
    finally:
        over.set()
        watcher.join()


def _memory(session: int) -> float:
    """MB that a session's processes hold together, shared pages counted once."""
    total = 0
    for process in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):  # it ended while we looked
            if os.getsid(int(process.name)) == session:
                shares = (process / "smaps_rollup").read_text("ascii")
                total += int(re.findall(r"^Pss:\s+(\d+) kB", shares, re.MULTILINE)[0])
    return total * 1024 / 1e6


def _written(process: int) -> float:
    """MB that a process and its children, as far as it waited for them, wrote to disks."""
    counts = Path("/proc", str(process), "io").read_text("ascii")
    return int(re.findall(r"^write_bytes: (\d+)$", counts, re.MULTILINE)[0]) / 1e6


def _queued(process: str) -> float:
    """Seconds that a process's first thread waited for a CPU; 0 where the system does not tell."""
    try:
        return int(Path("/proc", process, "schedstat").read_text("ascii").split()[1]) / 1e9
    except OSError:
        return 0.0


def _cpu() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


@dataclass(frozen=True)
class Table:
    """Figures side by side."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Finding(NamedTuple):
    """One figure that answers the question."""

    what: str
    figure: str
    budget: str = ""
    verdict: str = ""


def within(took: Took, most: float) -> str:
    """Whether a budget in seconds holds."""
    if took.wall <= most:
        return "holds"
    return "holds on a free CPU" if took.free <= most else "missed"


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    name: str
    question: str
    settings: Mapping[str, Cell]
    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def options(about: str | None) -> argparse.ArgumentParser:
    """The command line that every benchmark has."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--write", action="store_true", help="keep the results and update README.md")
    return parser


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder for everything a benchmark makes."""
    with tempfile.TemporaryDirectory(prefix="svi-story-benchmark-") as folder:
        yield Path(folder)


def progress(text: str) -> None:
    """Say what is being measured."""
    print(text, file=sys.stderr, flush=True)


def finish(result: Result, *, write: bool) -> None:
    """Print the tables; with `write`, keep the result and bring the README's table up to date."""
    print("\n".join(_body(result)))
    if not write:
        return
    RESULTS.mkdir(exist_ok=True)
    kept = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": _machine(), "versions": _versions()}
    findings = [each._asdict() for each in result.findings]
    text = json.dumps({**asdict(result), "findings": findings, **kept}, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{result.name}.json").write_text(text, "utf-8")
    (RESULTS / f"{result.name}.md").write_text(_page(result, kept), "utf-8")
    _refresh_readme()


def _machine() -> dict[str, Cell]:
    models = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load average (5 minutes)": round(os.getloadavg()[1], 1),
    }


def _versions() -> dict[str, str]:
    from svi_story.cut.ffmpeg import encoder_versions  # a machine that only has a GPU lacks its packages
    from svi_story.render.record import versions as frame_versions

    ffmpeg = encoder_versions()[0].split()[2]
    packages = ("pydantic", "pyyaml", "safetensors", "typer")
    return {**frame_versions(), **{package: version(package) for package in packages}, "ffmpeg": ffmpeg}


def _page(result: Result, kept: Mapping[str, object]) -> str:
    facts = [f"- {name}: {_listed(kept[name])}" for name in kept]
    head = [f"# {result.name}: {result.question}", "", *facts, f"- settings: {_listed(result.settings)}", ""]
    return "\n".join([*head, *_body(result)])


def _listed(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _body(result: Result) -> Iterator[str]:
    for table in result.tables:
        yield from (f"## {table.title}", "", *_grid(table.columns, table.rows), "")
    yield from ("## Findings", "", *_grid(Finding._fields, result.findings), "")
    yield from (f"- {note}" for note in result.notes)
    yield ""


def _grid(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    """A Markdown table that reads well as it is."""
    texts = [list(columns), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    texts.insert(1, ["-" * width for width in widths])
    for row in texts:
        yield "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"


def shown(cell: Cell) -> str:
    """As it stands in a table: floats with three digits that count."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return str(cell)


def _refresh_readme() -> None:
    """Put the findings of all kept results between the README's marks."""
    readme = HERE / "README.md"
    rows: list[Sequence[Cell]] = []
    for path in sorted(RESULTS.glob("*.json")):
        kept = json.loads(path.read_text("utf-8"))
        link = f"[{path.stem}](results/{path.stem}.md)"
        rows += [(link, *finding.values()) for finding in kept["findings"]]
    table = "\n".join(_grid(("benchmark", *Finding._fields), rows))
    marks = re.compile(r"(<!-- results -->\n).*?(<!-- end -->)", re.DOTALL)
    text = readme.read_text("utf-8")
    readme.write_text(marks.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text), "utf-8")
