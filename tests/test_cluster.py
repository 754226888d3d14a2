"""Rendering on a Ray cluster: the same films bit for bit, whoever dies; a process that starts Ray ends it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import svi_support as support
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from svi_story.cli.options import with_address
from svi_story.enginespec.sampling import Lora
from svi_story.errors import InputError, Problem, TransientError
from svi_story.plan.model import Anchor, Segment, Size
from svi_story.render.distributed import executor as cluster
from svi_story.render.distributed.driver import reason_of
from svi_story.render.distributed.executor import prefetch
from svi_story.render.distributed.worker import WorkerBugError, absolute, portable
from svi_story.render.schedule import chains_of, ready, share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from conftest import Ended

    Run = Callable[..., Ended]

MAIN = (sys.executable, "-W", "error", "-c", "from svi_story.cli import main; main()")
SVI = ("--models", str(support.MODELS), "--dtype", "float32")
ANIMATIC = ("--engine", "animatic")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
HEAD = """
import ray, sys
there = ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
                 object_store_memory=80 * 2**20, _temp_dir=sys.argv[1])
print(there.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def segment_of(key: str, parent: str | None) -> Segment:
    return support.segment(key=key, parent=parent)


def names(chains: Any) -> list[str]:
    return ["".join(chain.keys) for chain in chains]


FOREST = [
    segment_of(*pair) for pair in (("a", None), ("b", "a"), ("c", "b"), ("x", "a"), ("p", None), ("q", "p"))
]


def test_chains_go_on_where_the_way_is_longest_and_fork_where_it_is_not() -> None:
    chains = chains_of(FOREST, set("abcxpq"))
    assert names(chains) == ["abc", "pq", "x"]
    assert names(ready(chains, set("abcxpq"))) == ["abc", "pq"]
    assert names(ready(chains, set("bcxpq"))) == ["abc", "pq", "x"]


def test_what_is_there_is_no_chain_s() -> None:
    chains = chains_of(FOREST, set("cxq"))
    assert sorted(names(chains)) == ["c", "q", "x"]
    assert len(ready(chains, set("cxq"))) == 3
    assert chains_of(FOREST, set()) == ()


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_shares_shrink_and_give_everything_out(workers: int) -> None:
    given, left = [], 100
    while left:
        given.append(share(left, workers, one_at_a_time=True))
        left -= given[-1]
    assert given == sorted(given, reverse=True)
    assert given[0] == -(-100 // (2 * workers))
    assert given[-1] == 1
    assert share(100, workers, one_at_a_time=False) == 1
    assert share(0, workers, one_at_a_time=True) == share(0, workers, one_at_a_time=False) == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("boards --ray", "boards --ray local"),
        ("--ray boards -q", "--ray local boards -q"),
        ("--ray -q boards", "--ray local -q boards"),
        ("--ray auto boards", "--ray auto boards"),
        ("boards --ray head:6379", "boards --ray head:6379"),
        ("boards --ray [::1]:6379", "boards --ray [::1]:6379"),
        ("boards --ray :6379", "boards --ray :6379"),
        ("--ray films/a:1 b", "--ray local films/a:1 b"),
        ("boards --ray=head:6379", "boards --ray=head:6379"),
        ("-- boards --ray", "-- boards --ray"),
        ("storyboards", "storyboards"),
    ],
)
def test_an_address_is_optional(typed: str, meant: str) -> None:
    assert with_address(typed.split()) == meant.split()


def test_paths_travel_absolute(tmp_path: Path) -> None:
    anchor = Anchor(Path("a.png"), Size(16, 16), "crop", "hash")
    segment = support.segment(anchor=anchor, loras=(Lora(Path("x/l.safetensors"), 1.0, 0.5),), key="k")
    moved = absolute(segment)
    assert moved.anchor.path == tmp_path / "a.png"
    assert moved.loras[0].path == tmp_path / "x/l.safetensors"
    assert (moved.fps, moved.size, moved.loras[0].low) == (Fraction(15), segment.size, 0.5)
    assert absolute(absolute(segment)) == absolute(segment)


def test_errors_travel_whole() -> None:
    error = InputError(Problem("is bad", file="b.yaml", line=3, path="clips[0]"), "and this")
    for kind in (error, TransientError(*error.problems)):
        there = pickle.loads(pickle.dumps(portable(kind)))
        assert (type(there), there.problems, str(there)) == (type(kind), kind.problems, str(kind))
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError as bug:
        told = pickle.loads(pickle.dumps(portable(bug)))
    assert isinstance(told, WorkerBugError)
    assert "test_errors_travel_whole" in str(told)


def test_without_ray_it_is_told_how_to_get_it(
    svi_story: Run, write_board: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    ended = svi_story("render", write_board(), *ANIMATIC, "--ray")
    assert ended.code == 2
    assert "pip install 'svi-story[ray]'" in ended.err
    assert not Path("renders").exists()


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--ray", "ray://head:10001"), "HOST:6379"),
        (("--ray", "127.0.0.1:1"), "nothing answers there"),
        (("--ray", "nohost.invalid:6379"), "nothing answers there"),
        (("--workers", "2"), "--ray"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_told_before_anything_starts(
    write_board: Callable[..., Path], flags: tuple[str, ...], word: str
) -> None:
    done = subprocess.run(
        [*MAIN, "render", str(write_board()), *ANIMATIC, *flags], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing_is_made()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:0", ":6379", "head", "head:", "a:b"])
def test_what_is_no_address_is_told_at_once(
    address: str, svi_story: Run, write_board: Callable[..., Path]
) -> None:
    ended = svi_story("render", write_board(), *ANIMATIC, f"--ray={address}")
    assert ended.code == 2
    assert f"--ray {address}: not an address" in ended.err
    assert "HOST:PORT" in ended.err
    assert not Path("renders").exists()


def nothing_is_made() -> bool:
    """Whether there is nothing but what planning keeps, and the log of the run."""
    kept = {"CACHEDIR.TAG", "events.jsonl"}
    return {path.name for path in Path("renders").rglob("*") if path.is_file()} <= kept


def test_auto_looks_where_ray_s_own_variable_says(
    svi_story: Run, write_board: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    ended = svi_story("render", write_board(), *ANIMATIC, "--ray", "auto")
    assert ended.code == 2
    assert "HOST:6379" in ended.err


class Impostor(socketserver.BaseRequestHandler):
    """Something that is not Ray: it answers with `words`, and then hangs up or waits."""

    words = b""
    hangs_up = False
    calls: list[int]

    def handle(self) -> None:
        self.calls.append(1)
        self.request.sendall(self.words)
        while not self.hangs_up and self.request.recv(4096):
            pass


@contextmanager
def impostor(**manners: object) -> Iterator[tuple[str, list[int]]]:
    """An address that accepts connections and is not Ray's, and the calls it has had."""
    calls: list[int] = []
    kind = type("Impostor", (Impostor,), {**manners, "calls": calls})
    with socketserver.ThreadingTCPServer(("", 0), kind) as server:  # Ray calls by this machine's own name
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", calls
        server.shutdown()


@pytest.mark.parametrize(
    "manners",
    [
        {},
        pytest.param({"words": b"HTTP/1.1 400 Bad Request\r\n\r\n"}, marks=pytest.mark.slow),
        pytest.param({"hangs_up": True}, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_an_address_that_is_not_ray_is_told_in_time_and_nothing_is_started(
    manners: dict[str, object],
    svi_story: Run,
    write_board: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    scratch: Path,
) -> None:
    assert cluster.JOIN_SECONDS < 25
    monkeypatch.setattr(cluster, "JOIN_SECONDS", 5.0)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with impostor(**manners) as (address, _):
        ended = svi_story("render", write_board(), *ANIMATIC, "--ray", address)
    assert ended.code == 2, ended.err
    assert f"--ray {address}: " in ended.err
    assert "check the address" in ended.err
    assert nothing_is_made()
    assert not list(scratch.iterdir())


@dataclass
class Watched:
    """A `render --json` under way: its events, and which process each worker is."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    processes: dict[int, int] = field(default_factory=dict)
    given: dict[tuple[str, str], int] = field(default_factory=dict)

    def until(self, kind: str, **wanted: object) -> dict[str, Any]:
        """Read on to the next event of a kind with these fields."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self._note(event)
            if event["event"] == kind and all(event[name] == value for name, value in wanted.items()):
                return dict(event)
        raise AssertionError(f"no {kind} {wanted}: {self.process.communicate()[1]}")

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["event"] == "worker_started":
            self.processes[event["worker"]] = event["process"]
        if event["event"] == "chain_given":
            self.given[event["board"], event["clip"]] = event["worker"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    def end(self, code: int) -> str:
        """Read to the end, which is to be with this code; standard error."""
        out, err = self.process.communicate(timeout=300)
        for line in out.splitlines():
            self._note(json.loads(line))
        assert self.process.returncode == code, err
        assert "Traceback" not in err
        return err


def start(*words: object, **environment: str) -> Watched:
    command = [*MAIN, "render", *map(str, words), "--json"]
    settings = {**os.environ, "OMP_NUM_THREADS": "2", **PASSIVE, **environment}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=settings, start_new_session=True
    )
    return Watched(process)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of one machine, with room for two workers."""
    folder = Path("/tmp") / f"svi-head-{os.getpid()}"
    folder.mkdir()
    environment = {**os.environ, **TOKEN, **PASSIVE}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", HEAD, str(folder)], stdin=pipe, stdout=pipe, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        assert process.stdin is not None
        process.stdin.close()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def prompts(*words: str) -> list[dict[str, Any]]:
    return [{"prompt": f"The {word} is drifting."} for word in words]


def svi_board(name: str, clips: list[dict[str, Any]], **changes: Any) -> None:
    """A board for the tiny checkpoint; clips after the second one are another chain."""
    settings = support.SETTINGS
    Image.open(support.DATA / "anchor.png").save("reference.png")
    board = {
        "version": 1,
        "reference": "../reference.png",
        "resolution": f"{settings['width']}x{settings['height']}",
        "fit": "stretch",
        "engine": {"variant": "2.0", "steps": 8, "max_frames": 5},
        "clips": clips,
        **changes,
    }
    Path("storyboards").mkdir(exist_ok=True)
    Path("storyboards", name).write_text(yaml.safe_dump(board, sort_keys=False), "utf-8")


def comes(look: Callable[[], object]) -> bool:
    """Whether something is so within two minutes."""
    until = time.monotonic() + 120
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(found)


def gone(process: int) -> bool:
    """Whether a process is over within two minutes."""
    return comes(lambda: not Path("/proc", str(process)).exists())


def films(folder: str) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.mp4")}


def svi_folder() -> None:
    """Two chains in one board, and a board that begins as it does and goes another way."""
    fog, sun, rain, snow = prompts("fog", "sun", "rain", "snow")
    svi_board("one.yaml", [fog, sun, {**rain, "transition": "cut"}, snow])
    svi_board("two.yaml", [fog, snow])


def left_of(session: int) -> list[str]:
    """What still runs of a session after half a minute; Ray's processes are in their starter's."""
    comes(lambda: not processes_of(session))
    return list(processes_of(session).values())


def processes_of(session: int) -> dict[int, str]:
    """What runs of a session: commands by process."""
    found = {}
    for folder in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == session:
                found[int(folder.name)] = command_of(int(folder.name))
    return found


def command_of(process: int) -> str:
    return Path("/proc", str(process), "cmdline").read_text().replace("\0", " ")


def process_of(session: int, word: str, other: str = "\0") -> int:
    """The process of a session whose command has a word, and not the other one."""
    (found,) = [
        process
        for process, command in processes_of(session).items()
        if word in command and other not in command
    ]
    return found


def children_of(process: int) -> list[int]:
    with suppress(OSError):
        return [*map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split())]
    return []


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files, of the longest name that leaves room for sockets."""
    prefix = "t".ljust(cluster.LONGEST_PLACE - len("/tmp/") - 8, "t")  # and eight letters of chance
    with tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp", ignore_cleanup_errors=True) as folder:
        assert len(folder) == cluster.LONGEST_PLACE
        yield Path(folder)


def test_films_are_the_same_bit_for_bit_and_ray_goes_as_it_came(scratch: Path) -> None:
    svi_folder()
    start("storyboards", *SVI, "-o", "plain", "--cache", "plain/cache").end(0)
    words = ("--ray", "--workers", "2", "--preview-every", "1")
    spread = start("storyboards", *SVI, *words, TMPDIR=str(scratch))
    spread.until("step_done", step=3)
    assert comes(lambda: list(Path("renders").glob("*.live.webp")))
    spread.end(0)
    assert not list(Path("renders").glob("*.live.webp"))
    assert len(films("plain")) == 2
    assert films("renders") == films("plain")
    one = {event["worker"] for event in spread.of("chain_given") if event["board"] == "storyboards/one.yaml"}
    assert one == {1, 2}
    assert len(spread.of("segment_done")) == 5
    assert len(spread.of("segment_reused")) == 1
    assert {event["event"] for event in spread.events} >= {"step_done", "phase_done", "film_done", "run_done"}
    records = {path.name: path.read_bytes() for path in Path("renders").glob("*.json")}
    assert records.keys() == {"one.json", "two.json"}
    assert left_of(spread.process.pid) == []
    assert not list(scratch.glob("svi-ray-*"))
    assert not [path for path in Path("renders/.cache").iterdir() if path.name.startswith(".tmp")]


@pytest.mark.slow
def test_a_killed_worker_costs_a_few_steps_and_a_bad_board_costs_the_others_nothing(head: str) -> None:
    fog, sun, rain, snow = prompts("fog", "sun", "rain", "snow")
    many = {"variant": "2.0", "steps": 40, "max_frames": 5}
    svi_board("good.yaml", [fog, sun, {**rain, "transition": "cut"}], engine=many)
    tensors = load_file(support.lora_file(support.MODELS, "low", "2.0-pro"))
    save_file({name: tensor[:, :1].contiguous() for name, tensor in tensors.items()}, "style.safetensors")
    svi_board("bad.yaml", [{**snow, "loras": [{"path": "../style.safetensors"}]}])
    run = start("storyboards", *SVI, "--ray", head, "--workers", "2", **TOKEN)
    step = run.until("step_done", clip="clip-01", step=7)
    os.kill(run.processes[run.given[step["board"], "clip-01"]], signal.SIGKILL)
    run.end(1)
    (lost,) = run.of("worker_lost")
    assert lost["reason"] == "its worker process has died"
    assert len(run.of("worker_started")) == 3
    (failed,) = run.of("board_failed")
    assert failed["board"] == "storyboards/bad.yaml"
    assert "style.safetensors" in failed["message"]
    steps = [event["step"] for event in run.of("step_done") if event["clip"] == "clip-01"]
    (again,) = [index for index in range(1, len(steps)) if steps[index] <= steps[index - 1]]
    assert 5 < steps[again] <= steps[again - 1]
    assert steps[again - 1] - steps[again] < 5
    assert steps[-1] == 40
    assert len(run.of("segment_done")) == 3
    start("storyboards/good.yaml", *SVI, "-o", "plain", "--cache", "plain/cache").end(0)
    assert films("renders") == films("plain")


def animatic_board(name: str, size: str, *words: str) -> None:
    Path("storyboards").mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), (90, 120, 60)).save("storyboards/anchor.png")
    board = {"version": 1, "reference": "anchor.png", "resolution": size, "clips": prompts(*words)}
    Path("storyboards", name).write_text(yaml.safe_dump(board), "utf-8")


@pytest.mark.slow
def test_takes_are_rendered_after_the_film_or_beside_it(head: str) -> None:
    animatic_board("takes.yaml", "64x64", "fog", "sun", "rain")
    text = Path("storyboards/takes.yaml").read_text("utf-8")
    sun = "- prompt: The sun is drifting.\n"
    assert sun in text
    Path("storyboards/takes.yaml").write_text(text.replace(sun, f"{sun}  takes: 3\n  pick: 2\n"), "utf-8")
    run = start("storyboards", *ANIMATIC, "--ray", head, "--workers", "2", **TOKEN)
    run.end(0)
    done = [(event["clip"], event["take"]) for event in run.of("segment_done")]
    assert sorted(done) == [("clip-01", 1), ("clip-02", 1), ("clip-02", 2), ("clip-02", 3), ("clip-03", 1)]
    assert [event["takes"] for event in run.of("takes_done")] == [2]
    again = start("storyboards", *ANIMATIC, "--ray", head, "--workers", "2", **TOKEN)
    again.end(0)
    assert again.of("segment_done") == []
    start("storyboards", *ANIMATIC, "-o", "plain", "--cache", "plain/cache").end(0)
    assert films("renders") == films("plain")


@pytest.mark.slow
def test_a_segment_that_kills_every_worker_is_given_up_and_the_rest_is_made(head: str) -> None:
    animatic_board("deadly.yaml", "1280x720", "bomb")
    animatic_board("fine.yaml", "64x64", "fog", "sun")
    run = start("storyboards", *ANIMATIC, "--ray", head, "--workers", "2", **TOKEN)
    for _ in range(3):
        run.until("segment_started", board="storyboards/deadly.yaml")
        os.kill(run.processes[run.given["storyboards/deadly.yaml", "clip-01"]], signal.SIGKILL)
    run.end(1)
    assert len(run.of("worker_lost")) == 3
    (failed,) = run.of("board_failed")
    assert failed["board"] == "storyboards/deadly.yaml"
    assert "3 workers died" in failed["message"]
    assert films("renders").keys() == {"fine.mp4"}


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupt_ends_everything_that_was_started(
    number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    animatic_board("long.yaml", "1280x720", *(f"fog {n}" for n in range(9)))
    address = ["--ray"] if number == signal.SIGINT else ["--ray", request.getfixturevalue("head")]
    long = Path("temporary").absolute()  # too long for sockets
    long.mkdir()
    run = start("storyboards", *ANIMATIC, *address, "--workers", "1", TMPDIR=str(long), **TOKEN)
    run.until("segment_done")
    (worker,) = run.processes.values()
    began = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(run.process.pid, number)  # as a terminal does, to all that it started
    else:
        run.process.send_signal(number)
    err = run.end(130)
    assert time.monotonic() - began < 60
    assert "what was done is kept" in err
    assert "--ray" in err
    assert left_of(run.process.pid) == []
    assert gone(worker)
    assert not films("renders")


def test_an_interrupt_is_heard_while_an_address_does_not_answer(scratch: Path) -> None:
    animatic_board("one.yaml", "64x64", "fog")
    with impostor() as (address, calls):
        run = start("storyboards", *ANIMATIC, "--ray", address, TMPDIR=str(scratch))
        assert comes(lambda: len(calls) > 1)  # after a first look, by Ray itself
        run.process.send_signal(signal.SIGINT)
        run.process.wait(60)
        assert "what was done is kept" in run.end(130)
    assert not any(path.name.startswith("svi-ray-") for path in scratch.iterdir())
    assert left_of(run.process.pid) == []


def test_an_interrupt_while_ray_starts_leaves_nothing(scratch: Path) -> None:
    animatic_board("one.yaml", "64x64", "fog")
    run = start("storyboards", *ANIMATIC, "--ray", TMPDIR=str(scratch))
    assert comes(lambda: list(scratch.glob("svi-ray-*/ray")))
    os.killpg(run.process.pid, signal.SIGINT)
    run.end(130)
    assert left_of(run.process.pid) == []
    assert not list(scratch.glob("svi-ray-*"))


@pytest.mark.slow
def test_nothing_is_left_when_ray_s_own_server_and_this_program_are_killed(scratch: Path) -> None:
    animatic_board("long.yaml", "1280x720", *(f"fog {n}" for n in range(9)))
    run = start("storyboards", *ANIMATIC, "--ray", "--workers", "1", TMPDIR=str(scratch))
    run.until("segment_started")
    os.kill(process_of(run.process.pid, "gcs_server"), signal.SIGKILL)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.communicate()
    assert left_of(run.process.pid) == []
    assert not list(scratch.glob("svi-ray-*"))


@pytest.mark.slow
def test_when_ray_is_lost_the_work_goes_on_with_a_new_one(scratch: Path) -> None:
    animatic_board("one.yaml", "640x352", "fog", "sun")
    run = start("storyboards", *ANIMATIC, "--ray", "--workers", "1", TMPDIR=str(scratch))
    run.until("segment_started")
    os.kill(process_of(run.process.pid, "driver import main", "watchdog"), signal.SIGKILL)
    run.end(0)
    (delayed,) = run.of("board_delayed")
    assert "Ray ended or was lost" in delayed["message"]
    assert films("renders").keys() == {"one.mp4"}
    assert left_of(run.process.pid) == []


WORK = """
import os, subprocess, sys, time
orphan = "import subprocess, sys; subprocess.Popen(['sleep', '1000'], start_new_session=True, env={})"
subprocess.run([sys.executable, "-c", orphan], env={}, check=True)
open(os.path.join(os.environ["SVI_STORY_RUN"], "file"), "w").close()
"""
OWNER = """
import os, subprocess, sys
folder, work = sys.argv[1:]
fd, _ = os.pipe()
program = "from svi_story.render.distributed.watchdog import main; main()"
keeper = [sys.executable, "-c", program, folder, str(fd)]
kept = subprocess.Popen([*keeper, sys.executable, "-c", work], stdin=subprocess.PIPE, pass_fds=[fd],
                        env={**os.environ, "SVI_STORY_RUN": folder})
print(kept.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["the owner is killed", "the keeper is told to", "the command ends"])
def test_a_keeper_ends_everything_that_its_command_started(how: str, scratch: Path) -> None:
    folder = scratch / "kept"
    work = WORK if how == "the command ends" else WORK + "time.sleep(1000)"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), work], stdin=pipe, stdout=pipe, text=True
    ) as owner:
        assert owner.stdout is not None
        keeper = int(owner.stdout.readline())
        if how != "the command ends":
            assert comes((folder / "file").exists)
            (orphan,) = [each for each in children_of(keeper) if command_of(each).startswith("sleep")]
            os.kill(owner.pid if how == "the owner is killed" else keeper, signal.SIGTERM)
            assert gone(orphan)
        assert comes(lambda: not folder.exists() and not children_of(keeper))
        owner.kill()


@pytest.mark.slow
def test_a_worker_that_cannot_work_says_why(head: str) -> None:
    svi_board("one.yaml", prompts("fog"))
    run = start("storyboards", *SVI, "--ray", head, "--attention", "flash-attn-2", "--workers", "1", **TOKEN)
    run.end(1)
    (failed,) = run.of("board_failed")
    assert "--attention" in failed["message"]
    assert len(run.of("worker_lost")) == 1


def test_why_a_worker_is_gone_is_told_on_a_line() -> None:
    died = "The actor died.\n\tpid: 1\nThe actor is dead because its worker process has died. Exit detail: 2."
    unborn = (
        "The actor died because of an error raised in its creation segment, \x1b[36mray::Worker.__init__()\n"
        "  File x\nModuleNotFoundError: No module named 'svi_story'"
    )
    assert reason_of(RuntimeError(died)) == "its worker process has died"
    assert reason_of(RuntimeError(unborn)) == "ModuleNotFoundError: No module named 'svi_story'"
    assert reason_of(RuntimeError()) == "RuntimeError"


def test_workers_are_looked_after_while_films_are_cut_and_left_when_nobody_wants_more() -> None:
    over = threading.Event()
    went_on = threading.Event()

    def work() -> Iterator[int]:
        yield 1
        went_on.set()
        over.wait(60)
        if not over.is_set():
            raise TimeoutError("nobody said stop")

    reading = prefetch(work(), over.set)
    assert next(reading) == 1
    assert went_on.wait(60)
    assert isinstance(reading, Generator)
    reading.close()
    assert over.is_set()

    def broken() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    given: list[int] = []
    with pytest.raises(ZeroDivisionError):
        given.extend(prefetch(broken(), over.set))
    assert "workers" not in {thread.name for thread in threading.enumerate()}
