"""Events as frozen values, which reporters receive. Their docstrings are the table in docs/json.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003 - run logs are read by these annotations

from svi_story.units import counted


@dataclass(frozen=True)
class Event:
    """Something that happened. Its text is a message for the user, unless it is frequent."""


@dataclass(frozen=True)
class BoardEvent(Event):
    """Something that happened to a board, or to its film."""

    board: Path


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know; the work goes on."""

    message: str

    def __str__(self) -> str:
        return f"warning: {self.message}"


@dataclass(frozen=True)
class Hashing(Event):
    """A large file is being hashed; its hash is remembered until it changes. Numbers of bytes."""

    path: Path
    done: int
    total: int


@dataclass(frozen=True)
class BundleOpened(Event):
    """A bundle was unpacked to `board` and will be rendered with these settings; packed with `packed`."""

    bundle: Path
    board: Path
    engine: str
    """with the settings that change frames: `svi, float32, vae whole`"""
    packed: str

    def __str__(self) -> str:
        other = "" if self.engine == self.packed else f", not as it was packed: {self.packed}"
        return f"{self.bundle}: a bundle of {self.board.name}; engine {self.engine}{other}"


@dataclass(frozen=True)
class RunOpened(Event):
    """The first line of a run log: the process that renders. Ids count in `namespace`, which may be empty."""

    host: str
    namespace: str
    process: int
    started: float
    """when the process started, in seconds since 1970"""
    folder: Path
    """the working directory: paths of other events are relative to it"""
    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}: {' '.join(self.command)}"


@dataclass(frozen=True)
class RunEnded(Event):
    """The last line of a run log: `done`, `failed`, `stopped` or `interrupted`; none after a kill."""

    ending: str

    def __str__(self) -> str:
        return f"the run ended: {self.ending}"


@dataclass(frozen=True)
class RunStarted(Event):
    """The run starts."""

    boards: int
    segments: int

    def __str__(self) -> str:
        return f"boards: {self.boards}, segments: {self.segments}"


@dataclass(frozen=True)
class BoardRefused(BoardEvent):
    """A board is invalid, or its engine is missing something; nothing of it was started."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class RunDone(Event):
    """The run ended. Numbers of boards."""

    done: int
    failed: int
    refused: int

    def __str__(self) -> str:
        return f"boards: {self.done} done, {self.failed} failed, {self.refused} refused"


@dataclass(frozen=True)
class BoardStarted(BoardEvent):
    """A board's rendering starts."""

    film: Path
    clips: int
    segments: int
    to_render: int
    takes: int = 0
    """to render after the film, besides those that it uses"""

    def __str__(self) -> str:
        what = counted(self.clips, "clip") + (f", {counted(self.takes, 'more take')}" if self.takes else "")
        return f"{self.board}: {self.to_render} of {counted(self.segments, 'segment')} to render ({what})"


@dataclass(frozen=True)
class SegmentEvent(BoardEvent):
    """Something that happened to a segment."""

    clip: str
    segment: int
    take: int = field(default=1, kw_only=True)

    @property
    def name(self) -> tuple[Path, str, int, int]:
        """Board, clip, take and index: the segment's `name`."""
        return self.board, self.clip, self.take, self.segment

    @property
    def where(self) -> str:
        """The segment's name in messages."""
        return f"{self.board}: {self.label}"

    @property
    def label(self) -> str:
        """The segment for people, as `roof, take 2, segment 3`; the first ones are not counted."""
        take = f", take {self.take}" * (self.take > 1)
        return f"{self.clip}{take}" + f", segment {self.segment + 1}" * (self.segment > 0)


@dataclass(frozen=True)
class SegmentReused(SegmentEvent):
    """A segment is in the cache already."""

    key: str

    def __str__(self) -> str:
        return f"{self.where}: cached"


@dataclass(frozen=True)
class SegmentStarted(SegmentEvent):
    """The rendering of a segment starts."""

    key: str
    frames: int

    def __str__(self) -> str:
        return f"{self.where}: rendering {self.frames} frames"


@dataclass(frozen=True)
class PhaseStarted(SegmentEvent):
    """A model starts its steps of a segment, or the decoding of its frames (`decode`) starts."""

    model: str

    def __str__(self) -> str:
        return f"{self.where}: {self.model}"


@dataclass(frozen=True)
class StepDone(SegmentEvent):
    """One sampling step is done."""

    step: int
    steps: int

    def __str__(self) -> str:
        return f"{self.where}: step {self.step} of {self.steps}"


@dataclass(frozen=True)
class PhaseDone(SegmentEvent):
    """A model finished its steps of a segment: so many now, 0 if an earlier run took them."""

    model: str
    steps: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.where}: {self.model}: {self.steps} steps in {self.seconds:.1f} s"


@dataclass(frozen=True)
class PromptsStarted(Event):
    """The encoding of prompts starts."""

    prompts: int

    def __str__(self) -> str:
        return f"prompts to encode: {self.prompts}"


@dataclass(frozen=True)
class DeviceMemory(Event):
    """How many bytes of the GPU's memory are in use, by all programs together."""

    used: int
    total: int


@dataclass(frozen=True)
class TimeLeft(Event):
    """How long the run will take from now on, in all; `at_least` as long as some of it is unknown."""

    seconds: float
    at_least: bool

    def __str__(self) -> str:
        return f"time left: {'at least' if self.at_least else 'about'} {self.seconds:.0f} s"


@dataclass(frozen=True)
class Starting(Event):
    """Something starts that takes a while, such as an engine or the workers of `--ray`."""

    what: str

    def __str__(self) -> str:
        return f"starting {self.what}"


@dataclass(frozen=True)
class EngineSettled(Event):
    """An engine chose its settings, or a smaller `memory` mode (also as `rung`) or no `overlap` any more."""

    engine: str
    device: str
    dtype: str
    attention: str
    memory: str
    allocator: str = ""
    weights: str = "bf16"
    compiled: bool = False
    overlap: bool = False

    def __str__(self) -> str:
        return f"{self.engine}: {self.dtype} on {self.device}, --memory {self.memory}, {self.attention}"


@dataclass(frozen=True)
class WorkerStarted(Event):
    """A worker is ready to render (`--ray`); `process` is its process id."""

    worker: int
    host: str
    process: int

    def __str__(self) -> str:
        return f"worker {self.worker}: started on {self.host}, process {self.process}"


@dataclass(frozen=True)
class WorkerLost(Event):
    """A worker died or cannot work; others take over its segments. `host` is empty if it never started."""

    worker: int
    host: str
    reason: str

    def __str__(self) -> str:
        name = f"worker {self.worker}" + (f" on {self.host}" if self.host else "")
        return f"{name}: lost: {self.reason}; its work goes to others"


@dataclass(frozen=True)
class ChainGiven(SegmentEvent):
    """A worker was assigned this segment and the next ones of its chain."""

    worker: int
    segments: int

    def __str__(self) -> str:
        return f"{self.where}: {self.segments} segments assigned to worker {self.worker}"


@dataclass(frozen=True)
class ModelLoading(Event):
    """A model is being read from its files. Numbers of bytes."""

    model: str
    done: int
    total: int


@dataclass(frozen=True)
class ModelWorking(Event):
    """So many prompts are encoded (`text`), latents done (`vae`), or bytes of an expert on the device."""

    model: str
    done: int
    total: int


@dataclass(frozen=True)
class ModelLoaded(Event):
    """A model has so many bytes in memory, for which so many were read from files; or its LoRAs changed."""

    model: str
    bytes: int
    seconds: float
    read: int = 0

    def __str__(self) -> str:
        return f"{self.model}: {self.bytes / 2**30:.2f} GiB loaded in {self.seconds:.1f} s"


@dataclass(frozen=True)
class ModelMoved(Event):
    """A model was moved from RAM to the device."""

    model: str
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.model}: {self.bytes / 2**30:.2f} GiB to the device in {self.seconds:.1f} s"


@dataclass(frozen=True)
class FramesDone(SegmentEvent):
    """Frames of a segment were decoded and written; about every tenth is reported."""

    done: int
    frames: int

    def __str__(self) -> str:
        return f"{self.where}: {self.done} of {self.frames} frames written"


@dataclass(frozen=True)
class SegmentDone(SegmentEvent):
    """A segment is in the cache. `seconds`: sampling and decoding; `storing`: decoding without the device."""

    key: str
    seconds: float
    sampling: float
    decoding: float
    storing: float = 0.0

    def __str__(self) -> str:
        return f"{self.where}: done in {self.seconds:.1f} s"


@dataclass(frozen=True)
class ClipDone(BoardEvent):
    """All segments of a clip's take are in the cache."""

    clip: str
    take: int = 1

    def __str__(self) -> str:
        return f"{self.board}: {self.clip}{f' (take {self.take})' * (self.take > 1)}: complete"


@dataclass(frozen=True)
class PieceDone(BoardEvent):
    """A piece of the film was encoded in so many seconds, usually one clip, or a card (by its name)."""

    clip: str
    frames: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.board}: {self.clip}: {self.frames} frames encoded in {self.seconds:.1f} s"


@dataclass(frozen=True)
class SoundDone(BoardEvent):
    """The film's sound was mixed: so many seconds (`length`) in `seconds`."""

    length: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.board}: {self.length:.1f} s of sound mixed in {self.seconds:.1f} s"


@dataclass(frozen=True)
class PreviewDone(BoardEvent):
    """The preview film of the finished clips was updated."""

    preview: Path
    frames: int

    def __str__(self) -> str:
        return f"{self.preview}: preview of the finished clips: {self.frames} frames"


@dataclass(frozen=True)
class JoinStarted(BoardEvent):
    """The joining of all pieces into the film starts."""

    film: Path
    pieces: int

    def __str__(self) -> str:
        return f"{self.film}: joining {self.pieces} pieces"


@dataclass(frozen=True)
class FilmDone(BoardEvent):
    """The film is complete; `seconds` is its length. `made` is false if it was up to date already."""

    film: Path
    frames: int
    seconds: float
    made: bool

    def __str__(self) -> str:
        part = "" if self.film.stem == self.board.stem else f"{self.film.name}: "  # a clip, a take, a draft
        done = f"{'done' if self.made else 'up to date'}: {self.frames} frames, {self.seconds:.2f} s"
        return f"{self.board}: {part}{done}"


@dataclass(frozen=True)
class TakesDone(BoardEvent):
    """All takes that the film does not use are in the cache."""

    takes: int

    def __str__(self) -> str:
        return f"{self.board}: {counted(self.takes, 'more take')} rendered"


@dataclass(frozen=True)
class BoardDelayed(BoardEvent):
    """A board failed with a transient error, and is started again after all others."""

    message: str

    def __str__(self) -> str:
        return "\n".join(f"{self.board}: failed for now: {line}" for line in self.message.splitlines())


@dataclass(frozen=True)
class MediaDone(BoardEvent):
    """A media file for an editor was written (`export --media`)."""

    media: Path
    made: bool

    def __str__(self) -> str:
        return f"{self.media}: {'written' if self.made else 'up to date'}"


@dataclass(frozen=True)
class Measured(Event):
    """A review has measured so many of all `what`: the clips of a board, or the frames of a film file."""

    path: Path
    what: str
    done: int
    total: int

    def __str__(self) -> str:
        return f"{self.path}: {self.done} of {self.total} {self.what} measured"


@dataclass(frozen=True)
class BoardFailed(BoardEvent):
    """A board could not be finished; what was rendered is kept."""

    message: str

    def __str__(self) -> str:
        return "\n".join(f"{self.board}: failed: {line}" for line in self.message.splitlines())


Reporter = Callable[[Event], None]
