"""What the page shows: the boards below some paths, their clips, and the runs that render them."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from svi_story.api import prepare_jobs
from svi_story.cache.entry import ENTRY, read_manifest
from svi_story.cache.frames import Frames
from svi_story.cache.layout import FRAMES, PIECE_FILE, Layout
from svi_story.commands import suggest
from svi_story.cut.encode import encoding_of, piece_inputs
from svi_story.cut.timeline import pieces_of
from svi_story.errors import InputError, Problem, RenderError, StoryError
from svi_story.files import CorruptError
from svi_story.plan.fingerprints import Fingerprints
from svi_story.plan.keys import key_of
from svi_story.render.film import by_content
from svi_story.render.live import live_preview
from svi_story.render.record import partial_film
from svi_story.render.runs import CONTROL, STOP, LogReader, log_files, request_stop, usual_pauses
from svi_story.render.takes import edit_pick, requested_takes
from svi_story.storyboard.files import changed_meanwhile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from fractions import Fraction

    from svi_story.api import Options
    from svi_story.cache.store import Store
    from svi_story.cut.timeline import Piece
    from svi_story.events import Event
    from svi_story.plan.model import Segment, Shot
    from svi_story.render.jobs import Job, Rejected
    from svi_story.render.progress import BoardProgress
    from svi_story.render.runs import RunReport, Stop

Json = dict[str, Any]
PLAN_SECONDS = 60.0
"""After which the boards are planned again, even if none was changed."""
LOOK_SECONDS = 2.0
"""Between two looks at what is in the caches."""
MOST_RUNS = 12
"""Newest runs that are shown."""
MOST_MESSAGES = 8
LOOP_PICTURES = 40
"""Of a take's animation."""
LONGEST = 300
"""Characters of a prompt."""
ACTIVE = ("running", "hanging")
Kind = Literal["film", "partial", "live", "clip"]


@dataclass
class _Board:
    """A board that is watched."""

    job: Job
    store: Store
    pieces: tuple[Piece, ...]
    contents: dict[str, str] = field(default_factory=dict)
    """The hash of the frames of finished segments, by key."""

    encoded: dict[int, Path] = field(default_factory=dict)
    """The files of pieces that exist, by number."""

    def parts(self, clip: str) -> list[Path]:
        """The encoded pieces of a clip that exist, in order. Fades, which are short, are left out."""
        return [
            path
            for number, path in sorted(self.encoded.items())
            if self.pieces[number].clip == clip and not self.pieces[number].under
        ]

    def look(self) -> None:
        """Notice finished segments and encoded pieces."""
        for segment in self.job.every_segment:
            if segment.key and segment.key not in self.contents:
                try:
                    files: Any = read_manifest(self.store.folder(segment.key) / ENTRY.manifest)["files"]
                    self.contents[segment.key] = str(files[FRAMES]["sha256"])
                except (OSError, CorruptError, KeyError, TypeError):
                    continue
        encoding = encoding_of(self.job.plan)
        for number, piece in enumerate(self.pieces):
            if number not in self.encoded and piece.keys <= self.contents.keys():
                inputs = piece_inputs(by_content(piece, self.contents), encoding)
                path = self.store.layout.piece(key_of(inputs)) / PIECE_FILE
                if path.exists():
                    self.encoded[number] = path


class Watched:
    """The boards and runs, as JSON for the page. Writes nothing but requests to stop, and picks."""

    def __init__(self, paths: Sequence[Path], options: Options) -> None:
        self._paths = tuple(paths)
        self._options = options
        self._boards: dict[str, _Board] = {}
        """By the board's real path."""
        self._rejected: tuple[Rejected, ...] = ()
        self._problems: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()
        self._planned = self._looked = float("-inf")
        self._signature: object = None
        self._fingerprints = Fingerprints.of_this_machine(lambda _event: None, ())
        self._readers: dict[Path, LogReader] = {}
        self._rows: list[Json] = []

    def refresh(self) -> Json:
        """What the page shows now. Slow when boards are planned; invalid boards do not raise."""
        now = time.monotonic()
        if now - self._planned > PLAN_SECONDS or self._signature != self._sign():
            self._plan()
            self._planned = now
        reports = self._read_runs()
        if now - self._looked > LOOK_SECONDS:
            for board in self._boards.values():
                board.look()
            self._looked = now
        mine = [report for report in reports if self._is_of_these(report)]
        return {
            "boards": self._board_rows(mine),
            "rejected": [
                {"name": each.board.name, "problems": [str(problem) for problem in each.error.problems]}
                for each in self._rejected
            ],
            "problems": list(self._problems),
            "runs": [self._run(report) for report in mine[:MOST_RUNS]],
        }

    def media(self, number: int, kind: str, clip: int = 0, part: int = 0) -> Path | None:
        """A file that belongs to a board, by numbers alone; None where there is none. No link is followed."""
        boards = list(self._boards.values())
        if not 0 <= number < len(boards):
            return None
        board, shots = boards[number], boards[number].job.plan.shots
        film = board.job.place.film
        match kind:
            case "film":
                path = film
            case "partial":
                path = partial_film(film)
            case "live":
                path = live_preview(film)
            case "clip":
                parts = board.parts(shots[clip].id) if 0 <= clip < len(shots) else []
                if not 0 <= part < len(parts):
                    return None
                path = parts[part]
            case _:
                return None
        return path if _changed(path) else None

    def take(self, number: int, clip: int, take: int, kind: str) -> bytes | None:
        """A take of a 0-based clip as an animation (`loop`), or its first frame (`still`), from the cache.

        None where it is not rendered.
        """
        boards = list(self._boards.values())
        if not 0 <= number < len(boards) or kind not in ("loop", "still"):
            return None
        board, shots = boards[number], boards[number].job.plan.shots
        takes = shots[clip].takes if 0 <= clip < len(shots) else ()
        found = next((each for each in takes if each.number == take), None)
        if found is None or not all(segment.key in board.contents for segment in found.segments):
            return None
        parts = [
            (board.store.folder(segment.key) / FRAMES, segment.overlap)
            for segment in (found.segments if kind == "loop" else found.segments[:1])
        ]
        try:
            return _drawn(tuple(parts), board.job.plan.fps, LOOP_PICTURES if kind == "loop" else 1)
        except (OSError, CorruptError, RenderError):
            return None

    def pick(self, path: str, digest: str, clip: str, take: int) -> bool:
        """Pick a take, by writing it into the board; False where there is no such board, clip or take.

        Raises InputError where the board was changed since it had this digest, and as `edit_pick`.
        """
        job = next((each.job for each in self._boards.values() if str(each.job.place.board) == path), None)
        shots = job.plan.shots if job else ()
        takes = next((shot.takes for shot in shots if shot.id == clip), ())
        if job is None or take not in [each.number for each in takes]:
            return False
        real = Path(os.path.realpath(path))
        if not any(real.is_relative_to(os.path.realpath(each)) for each in self._paths):
            command = suggest("pick", clip, str(take), path=path)
            what = f"a link leads to it from the folders that are watched; pick the take with `{command}`"
            raise InputError(Problem(what, file=path))
        _, edit = edit_pick(job, clip, take, self._fingerprints)
        if edit is not None:
            if hashlib.sha256(edit.before).hexdigest() != digest:
                raise changed_meanwhile(job.place.board)
            edit.write()
        return True

    def stop(self, run: str, stop: Stop) -> bool:
        """Ask a run of these boards to stop; False where there is none of that name. Raises InputError."""
        for path, reader in self._readers.items():
            if reader.run == run and self._is_of_these(reader.report()) and not reader.progress.ending:
                request_stop(path.parent, stop)
                return True
        return False

    def _sign(self) -> object:
        """A value that changes when a board's file changes."""
        places = [board.job.place.board for board in self._boards.values()]
        return [_changed(path) for path in (*places, *(each.board for each in self._rejected))]

    def _plan(self) -> None:
        self._problems = ()

        def ignore(_event: Event) -> None:
            pass

        try:
            jobs, rejected, self._fingerprints = prepare_jobs(self._paths, self._options, ignore)
            requested = {job.place.board: requested_takes(job, job.place.store(ignore)) for job in jobs}
            if any(requested.values()):
                jobs, rejected, _ = prepare_jobs(
                    self._paths, self._options, ignore, lambda board: requested.get(board.path, {})
                )
        except StoryError as error:
            self._problems = tuple(map(str, error.problems))
            return
        boards: dict[str, _Board] = {}
        for job in jobs:
            name = os.path.realpath(job.place.board)
            contents = self._boards[name].contents if name in self._boards else {}
            boards[name] = _Board(job, job.place.store(ignore), pieces_of(job.plan), contents)
        self._boards, self._rejected = boards, tuple(rejected)
        self._signature = self._sign()
        self._looked = float("-inf")

    def _read_runs(self) -> list[RunReport]:
        """The runs in the boards' caches, the newest first."""
        caches = dict.fromkeys(board.job.place.settings.cache for board in self._boards.values())
        paths = [path for cache in caches for path in log_files(Layout(cache))]
        paths = sorted(paths, key=lambda path: path.parent.name, reverse=True)
        known: dict[str, Path] = {}
        for path in paths:  # a run over several projects has a log in each cache
            known.setdefault(path.parent.name, path)
        self._readers = {path: self._readers.get(path) or LogReader(path) for path in known.values()}
        for reader in self._readers.values():
            reader.update()
        usual = usual_pauses(self._readers.values())
        return [reader.report(usual) for reader in self._readers.values() if reader.progress.opened]

    def _is_of_these(self, report: RunReport) -> bool:
        return any(name in self._boards for name in _boards_of(report))

    def _board_rows(self, reports: Sequence[RunReport]) -> list[Json]:
        rows = []
        alike = Counter(board.job.place.board.name for board in self._boards.values())
        for number, (name, board) in enumerate(self._boards.items()):
            run, progress = next(
                ((report, found) for report in reports if (found := _boards_of(report).get(name))),
                (None, None),
            )
            row = _row(number, board, progress, is_running=bool(run and run.state in ACTIVE))
            rows.append(row | {"name": row["path"]} if alike[row["name"]] > 1 else row)
        return rows

    def _run(self, report: RunReport) -> Json:
        progress, opened = report.progress, report.progress.opened
        boards = _boards_of(report)
        numbers = {name: number for number, name in enumerate(self._boards)}
        is_only_these = all(name in numbers for name in boards)
        current = ""
        if progress.current and opened:
            current = _real(opened.folder / progress.current[0])
        shown = is_only_these or current in numbers
        segment = progress.segment
        path = next(path for path, reader in self._readers.items() if reader.run == report.run)
        messages = list(progress.messages)[-MOST_MESSAGES:] if is_only_these else []
        usage = _disk(path)
        active = report.state in ACTIVE
        return {
            "run": report.run,
            "state": report.state,
            "message": report.message if shown or not active else "rendering a board that is not shown here",
            "now": (progress.now if len(progress.workers) > 1 else progress.activity)
            if shown
            else "rendering a board that is not shown here",
            "boards": [numbers[name] for name in boards if name in numbers],
            "current": numbers.get(current) if active else None,
            "clip": progress.current[1] if progress.current and shown else None,
            "step": segment.step if segment and shown else 0,
            "steps": segment.steps if segment and shown else 0,
            "step_seconds": segment.step_seconds if segment and shown else None,
            "finished": progress.finished,
            "segments": progress.segments,
            "fraction": round(progress.fraction, 3),
            "started": progress.first,
            "ended": None if active else progress.latest,
            "end": progress.left_at + progress.left.seconds if active and progress.left else None,
            "at_least": bool(progress.left and progress.left.at_least),
            "silent": round(report.silent) if report.state == "hanging" else 0,
            "memory": [progress.memory.used, progress.memory.total] if progress.memory and active else None,
            "disk": usage if active else None,
            "workers": len(progress.workers),
            "host": opened.host if opened else "",
            "process": opened.process if opened else 0,
            "stopping": active and (path.parent / CONTROL / STOP).exists(),
            "messages": [text for _, text in messages],
        }


def _boards_of(report: RunReport) -> Mapping[str, BoardProgress]:
    """The boards of a run by their real paths."""
    opened = report.progress.opened
    folder = opened.folder if opened else Path()
    return {_real(folder / path): board for path, board in report.progress.boards.items()}


@lru_cache(4096)
def _real(path: Path) -> str:
    """The path without links; cached, because it is needed every second."""
    return os.path.realpath(path)


@lru_cache(64)
def _drawn(parts: tuple[tuple[Path, int], ...], fps: Fraction, most: int) -> bytes | None:
    """Frames, by their files and overlaps, as WebP."""
    from svi_story.review.graphics import loop_of  # here: it imports OpenCV

    picture = loop_of([(partial(Frames, path), overlap) for path, overlap in parts], fps, most)
    return picture.webp if picture else None


def _row(number: int, board: _Board, progress: BoardProgress | None, *, is_running: bool) -> Json:
    """A board for the page."""
    job, place = board.job, board.job.place
    clips = [
        _cell(index, shot, board, progress, is_running=is_running)
        for index, shot in enumerate(job.plan.shots)
    ]
    film, partial = _changed(place.film), _changed(partial_film(place.film))
    finished = sum(clip["state"] == "done" for clip in clips)
    state, message = "", ""
    if progress:
        message = progress.message
        state = progress.state if is_running or progress.state in ("failed", "refused", "done") else ""
    if progress and state == "rendering":
        states = {each["state"] for clip in clips for each in (clip, *clip["takes"])}
        if not states & {"sampling", "decoding"} and not (progress.takes and finished == len(clips)):
            state = "queued" if finished < len(clips) else "joining"
    if not state or (state == "done" and finished < len(clips)):  # changed since
        state = "done" if finished == len(clips) and film else "unfinished" if finished else "waiting"
    return {
        "number": number,
        "name": place.board.name,
        "path": str(place.board),
        "digest": job.plan.digest,
        "width": job.plan.size.width,
        "height": job.plan.size.height,
        "title": job.plan.title,
        "engine": job.plan.engine,
        "seconds": round(job.plan.seconds, 2),
        "state": state,
        "message": message or (str(job.missing) if job.missing else ""),
        "finished": finished,
        "clips": clips,
        "film": film,
        "partial": partial,
        "live": _changed(live_preview(place.film)) if is_running else 0,
    }


def _cell(index: int, shot: Shot, board: _Board, progress: BoardProgress | None, *, is_running: bool) -> Json:
    """A clip for the page."""
    done = sum(segment.key in board.contents for segment in shot.segments)
    state = _state(shot.id, shot.segments, board, progress, is_running=is_running)
    return {
        "id": shot.id,
        "number": index + 1,
        "state": state,
        "done": done,
        "segments": len(shot.segments),
        "seconds": round(float(shot.frames / board.job.plan.fps), 2),
        "parts": len(board.parts(shot.id)) if done == len(shot.segments) else 0,
        "prompt": shot.prompt[:LONGEST] + ("…" if len(shot.prompt) > LONGEST else ""),
        "seed": shot.seed,
        "starts_chain": shot.starts_chain,
        "takes": [
            {
                "number": take.number,
                "seed": take.seed,
                "picked": take.number == shot.pick,
                "state": _state(shot.id, take.segments, board, progress, is_running=is_running),
            }
            for take in (shot.takes if shot.other_takes else ())
        ],
    }


def _state(
    clip: str,
    segments: Sequence[Segment],
    board: _Board,
    progress: BoardProgress | None,
    *,
    is_running: bool,
) -> str:
    """How far a take is."""
    done = sum(segment.key in board.contents for segment in segments)
    if done == len(segments):
        return "done"
    started = progress.started if progress and is_running else {}
    states = [started.get((clip, segment.take, segment.index)) for segment in segments]
    if active := next((each for each in states if each and not each.is_finished), None):
        return active.state
    begun = any(board.store.state(segment.key) == "partial" for segment in segments if segment.key)
    return "partial" if done or begun else "waiting"


def _changed(path: Path) -> int:
    """When a regular file was changed, in milliseconds; 0 where there is none, or a link."""
    try:
        status = path.lstat()
    except (OSError, ValueError):
        return 0
    return status.st_mtime_ns // 1_000_000 if stat.S_ISREG(status.st_mode) else 0


def _disk(path: Path) -> list[int] | None:
    """Free and all bytes of a disk."""
    try:
        usage = shutil.disk_usage(path)
    except OSError:
        return None
    return [usage.free // 10**8 * 10**8, usage.total]
