"""The engine for people without a GPU: a moving camera over the anchor, with a burnt-in slate."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from svi_story.engines.animatic.camera import Pose, first_pose, is_possible, next_pose, path, view
from svi_story.engines.base import Phase, carried_array, foreign_carry_error, open_anchor
from svi_story.enginespec.animatic import AnimaticOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from fractions import Fraction
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from svi_story.engines import Digest, Keep, MemoryNeed
    from svi_story.engines.base import Carry, Checkpoint, Frame, Latents, OnStep
    from svi_story.enginespec import EngineOptions
    from svi_story.enginespec.animatic import SlateSize
    from svi_story.events import Reporter
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Segment, Size


@dataclass(frozen=True)
class AnimaticIdentity:
    """What the plan needs to know; nothing is loaded for it."""

    name: str = "animatic"
    revision: int = 1

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """Camera: seed, fps, frames, overlap, anchor; slate: its size, clip, prompt, fps, first frame."""
        return {
            "prompt": segment.prompt,
            "seed": segment.seed,
            "width": segment.size.width,
            "height": segment.size.height,
            "frames": segment.frames,
            "overlap": segment.overlap,
            "anchor": segment.anchor.pixels,
            "clip": segment.clip,
            "fps": str(segment.fps),
            "first_frame": segment.first_frame,
            **({"slate": slate_of(segment)} if slate_of(segment) != "on" else {}),
        }


def slate_of(segment: Segment) -> SlateSize:
    """What is drawn over the picture."""
    return segment.options.slate if isinstance(segment.options, AnimaticOptions) else "on"


class Animatic:
    """The anchor under a slow camera, with clip id, prompt and timecode burnt in.

    Its latents are two poses of the camera, (x, y, zoom) as float64: `start`, and `pose` at the last frame,
    which the next segment of the chain starts from.
    """

    def __init__(self) -> None:
        self._pictures: dict[str, Image.Image] = {}

    @property
    def identity(self) -> AnimaticIdentity:
        """Name, revision and the inputs that the frames depend on."""
        return AnimaticIdentity()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pictures.clear()

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """What the user should know before this segment is rendered: which of its prompt cannot be drawn."""
        from svi_story.engines.animatic.slate import prompt_is_cut
        from svi_story.media.text import unseen

        notes: list[str] = []
        if slate_of(segment) != "on":
            return ()
        if missing := unseen(segment.prompt):
            notes.append(f"{missing}, or change the prompt")
        if prompt_is_cut(segment):
            what = f"the prompt is cut on the slate of {segment.clip}: {len(segment.prompt)} characters"
            size = f"{segment.size.width}x{segment.size.height}"
            notes.append(f"{what} are more than {size} has room for; shorten it to read it whole")
        return tuple(notes)

    def environment(self) -> Mapping[str, str]:
        """Nothing: the frames depend on the key's inputs alone."""
        return {}

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Nothing serves several segments."""

    @property
    def one_at_a_time(self) -> bool:
        """There is no model."""
        return False

    @property
    def decodes_beside(self) -> bool:
        """Drawing takes all of the time, and nothing could be done beside it."""
        return False

    def phases(self, segment: Segment) -> Sequence[Phase]:
        """The camera's move, in one."""
        del segment
        return (Phase("camera", place=0, until=1, passes=1),)

    def advance(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, phase: Phase
    ) -> None:
        """Nothing comes before the last phase."""

    def sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep
    ) -> Latents:
        """Choose the camera's move. Instant, so there is nothing to keep in a checkpoint."""
        del checkpoint
        rng = random.Random(segment.seed)  # noqa: S311 - a camera move is no secret
        start = _carried(carry, segment) if carry and carry.engine == segment.engine else first_pose(rng)
        end = next_pose(start, rng, float(segment.contributes / segment.fps))
        on_step(1, 1)
        return {"start": _array(start), "pose": _array(end)}

    def preview(self) -> Sequence[Frame]:
        """Nothing is seen before it is drawn."""
        return ()

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        """Draw exactly `segment.frames` frames.

        Errors: RenderError when the anchor's file is gone or no longer holds the planned pixels.
        """
        import numpy as np
        from PIL import Image

        from svi_story.engines.animatic.slate import Slate

        if segment.anchor.pixels not in self._pictures:
            self._pictures.clear()
            self._pictures[segment.anchor.pixels] = Image.fromarray(open_anchor(segment.anchor))
        anchor = self._pictures[segment.anchor.pixels]
        slate = Slate(segment, slate_of(segment)) if slate_of(segment) != "off" else None
        poses = path(_pose(latents["start"]), _pose(latents["pose"]), segment.frames, segment.overlap)
        for frame, pose in enumerate(poses):
            picture = view(anchor, pose)
            if slate:
                slate.burn(picture, frame)
            yield np.array(picture, dtype=np.uint8)


def _array(pose: Pose) -> NDArray[np.float64]:
    import numpy as np

    return np.array([pose.x, pose.y, pose.zoom], dtype=np.float64)


def _carried(carry: Carry, segment: Segment) -> Pose:
    """Where the segment before left the camera. Raises RenderError for a pose that the camera cannot have."""
    array = carried_array(carry, "pose", segment)
    if array.shape != (3,) or not is_possible(_pose(array)):
        raise foreign_carry_error(segment)
    return _pose(array)


def _pose(array: NDArray[np.generic]) -> Pose:
    x, y, zoom = array.tolist()
    return Pose(x, y, zoom)


def identity_of(_options: EngineOptions, _digest: Digest) -> AnimaticIdentity:
    """What the frames depend on."""
    return AnimaticIdentity()


def create_engine(_options: EngineOptions, _digest: Digest, _keep: Keep, _report: Reporter) -> Animatic:
    """The engine."""
    return Animatic()


def phases_of(_options: EngineOptions, segment: Segment) -> Sequence[Phase]:
    """The camera's move, in one."""
    return Animatic().phases(segment)


def memory_needs(_options: EngineOptions, _segments: Sequence[Segment]) -> Mapping[str, MemoryNeed]:
    """There is no model."""
    return {}


def model_sizes(_options: EngineOptions) -> None:
    """There is no model."""


def overlay_rows(size: Size, fps: Fraction) -> int:
    """The rows that the slate may cover."""
    from svi_story.engines.animatic.slate import lay_out, timecode

    layout = lay_out(size, len(timecode(0, fps)))
    rows = layout.prompt_top + layout.prompt_room + layout.pad + layout.size
    return min(rows, size.height - 16)
