"""Events as frozen values. A reporter is a callable that receives them; nothing below the CLI prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """Something that happened. Its text is a message for the user."""


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should know; the work goes on."""

    message: str

    def __str__(self) -> str:
        return f"warning: {self.message}"


@dataclass(frozen=True)
class Hashing(Event):
    """A large file is being hashed, once for each state of it."""

    path: Path
    done: int
    total: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.path}: {self.done} of {self.total} bytes hashed"


@dataclass(frozen=True)
class BundleOpened(Event):
    """A bundle was unpacked; it is rendered with these settings."""

    bundle: Path
    board: Path
    """The path of its unpacked board."""
    engine: str
    """Including the settings that change frames: `svi, float32, vae whole`."""
    packed: str
    """The same when it was packed."""

    def __str__(self) -> str:
        other = "" if self.engine == self.packed else f", not as it was packed: {self.packed}"
        return f"{self.bundle}: a bundle of {self.board.name}; engine {self.engine}{other}"


@dataclass(frozen=True)
class RunStarted(Event):
    """The work of the run is known and starts."""

    boards: int
    segments: int

    def __str__(self) -> str:
        return f"boards: {self.boards}, segments: {self.segments}"


@dataclass(frozen=True)
class BoardRefused(Event):
    """A board cannot be rendered; nothing of it was started."""

    board: Path
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class RunDone(Event):
    """The last event of a run that was not interrupted."""

    done: int
    failed: int
    refused: int
    """Boards."""

    def __str__(self) -> str:
        return f"boards: {self.done} done, {self.failed} failed, {self.refused} refused"


@dataclass(frozen=True)
class BoardStarted(Event):
    """A board's rendering starts."""

    board: Path
    film: Path
    clips: int
    segments: int
    to_render: int

    def __str__(self) -> str:
        return f"{self.board}: {self.to_render} of {self.segments} segments to render ({self.clips} clips)"


@dataclass(frozen=True)
class SegmentEvent(Event):
    """Something that happened to one segment."""

    board: Path
    clip: str
    segment: int

    @property
    def where(self) -> str:
        """The segment's name in messages."""
        return f"{self.board}: {self.clip}/{self.segment}"


@dataclass(frozen=True)
class SegmentReused(SegmentEvent):
    """A segment was cached."""

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
class StepDone(SegmentEvent):
    """One sampling step is done."""

    step: int
    steps: int

    def __str__(self) -> str:
        return f"{self.where}: step {self.step} of {self.steps}"


@dataclass(frozen=True)
class PhaseDone(SegmentEvent):
    """One model has finished its part of a segment's sampling."""

    model: str
    steps: int
    """Taken in this run; 0 when an earlier run took them."""
    seconds: float

    def __str__(self) -> str:
        return f"{self.where}: {self.model}: {self.steps} steps in {self.seconds:.1f} s"


@dataclass(frozen=True)
class EngineSettled(Event):
    """An engine has chosen its settings for this machine; sent again when it changes the memory mode."""

    engine: str
    device: str
    dtype: str
    attention: str
    rung: str
    """The memory mode."""

    def __str__(self) -> str:
        return f"{self.engine}: {self.dtype} on {self.device}, --memory {self.rung}, {self.attention}"


@dataclass(frozen=True)
class WorkerStarted(Event):
    """A process of a cluster is ready to render segments."""

    worker: int
    host: str
    process: int
    """Its number on that host."""

    def __str__(self) -> str:
        return f"worker {self.worker}: started on {self.host}, process {self.process}"


@dataclass(frozen=True)
class WorkerLost(Event):
    """A process of a cluster died or cannot work; others take over its unfinished segments."""

    worker: int
    host: str
    """Empty when it never started."""
    reason: str

    def __str__(self) -> str:
        place = f" on {self.host}" if self.host else ""
        return f"worker {self.worker}{place}: lost: {self.reason}; its work goes to others"


@dataclass(frozen=True)
class ChainGiven(SegmentEvent):
    """A worker was assigned segments of one chain; this is the first."""

    worker: int
    segments: int

    def __str__(self) -> str:
        return f"{self.where}: {self.segments} segments assigned to worker {self.worker}"


@dataclass(frozen=True)
class ModelLoaded(Event):
    """A model was read from its files into device memory or RAM."""

    model: str
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.model}: {self.bytes / 2**30:.2f} GiB loaded in {self.seconds:.1f} s"


@dataclass(frozen=True)
class ModelMoved(Event):
    """A model was moved from RAM to the device, replacing another."""

    model: str
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.model}: {self.bytes / 2**30:.2f} GiB to the device in {self.seconds:.1f} s"


@dataclass(frozen=True)
class FramesDone(SegmentEvent):
    """Some of a segment's frames were decoded and written."""

    done: int
    frames: int

    def __str__(self) -> str:
        return f"{self.where}: {self.done} of {self.frames} frames written"


@dataclass(frozen=True)
class SegmentDone(SegmentEvent):
    """A segment is in the cache."""

    key: str
    seconds: float
    sampling: float
    decoding: float
    """Seconds."""

    def __str__(self) -> str:
        return f"{self.where}: done in {self.seconds:.1f} s"


@dataclass(frozen=True)
class ClipDone(Event):
    """All segments of a clip are in the cache."""

    board: Path
    clip: str

    def __str__(self) -> str:
        return f"{self.board}: {self.clip}: complete"


@dataclass(frozen=True)
class PieceDone(Event):
    """A run of the film's frames was encoded."""

    board: Path
    clip: str
    """Its clip, or the card that it is."""
    frames: int
    seconds: float
    """Time spent."""

    def __str__(self) -> str:
        return f"{self.board}: {self.clip}: {self.frames} frames encoded in {self.seconds:.1f} s"


@dataclass(frozen=True)
class SoundDone(Event):
    """The film's sound was mixed."""

    board: Path
    length: float
    """Seconds of sound."""
    seconds: float
    """Time spent."""

    def __str__(self) -> str:
        return f"{self.board}: {self.length:.1f} s of sound mixed in {self.seconds:.1f} s"


@dataclass(frozen=True)
class PreviewDone(Event):
    """The preview film of the finished clips was updated."""

    board: Path
    preview: Path
    frames: int

    def __str__(self) -> str:
        return f"{self.preview}: preview of the finished clips: {self.frames} frames"


@dataclass(frozen=True)
class FilmDone(Event):
    """The film is complete, verified and in place."""

    board: Path
    film: Path
    frames: int
    seconds: float
    """Length of the film."""
    made: bool
    """False when the film was already up to date."""

    def __str__(self) -> str:
        state = "done" if self.made else "up to date"
        return f"{self.film}: {state}: {self.frames} frames, {self.seconds:.2f} s"


@dataclass(frozen=True)
class BoardDelayed(Event):
    """A board failed with a transient error; it is tried again after all others."""

    board: Path
    message: str

    def __str__(self) -> str:
        return f"{self.board}: failed for now: {self.message.strip().splitlines()[-1]}"


@dataclass(frozen=True)
class MediaDone(Event):
    """A media file for an editor is in place."""

    board: Path
    media: Path
    made: bool
    """False when it already existed, made from the same frames."""

    def __str__(self) -> str:
        return f"{self.media}: {'written' if self.made else 'up to date'}"


@dataclass(frozen=True)
class ClipReviewed(Event):
    """All finished frames of a clip were measured."""

    board: Path
    clip: str
    done: int
    clips: int

    def __str__(self) -> str:
        return f"{self.board}: {self.clip}: measured ({self.done} of {self.clips} clips)"


@dataclass(frozen=True)
class BoardFailed(Event):
    """A board could not be finished; what was rendered is kept."""

    board: Path
    message: str

    def __str__(self) -> str:
        return f"{self.board}: failed: {self.message.strip().splitlines()[-1]}"


Reporter = Callable[[Event], None]


def as_json(event: Event) -> dict[str, object]:
    """An event as a JSON object: `{"event": "step_done", ...}`, paths as text."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(event).__name__).lower()
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": name, **fields}
