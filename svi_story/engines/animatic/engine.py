"""The animatic engine: same key, same machine, same versions: same frames."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from svi_story.engines.anchor import open_anchor
from svi_story.engines.animatic.camera import Pose, first_pose, is_possible, next_pose, path, view
from svi_story.engines.base import Phase
from svi_story.engines.carry import carried, not_ours

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from svi_story.engines.base import Carry, Checkpoint, Frame, Latents, OnStep
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Anchor, Segment


@dataclass(frozen=True)
class AnimaticIdentity:
    """What the plan needs to know; nothing is loaded for it."""

    name: str = "animatic"
    revision: int = 1

    def inputs(self, segment: Segment) -> Mapping[str, Json]:
        """Camera: seed, fps, frames, overlap, anchor; slate: clip, prompt, fps, first frame."""
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
        }


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
        """What the user should know before this segment is made: what of its prompt cannot be shown."""
        return (*_missing_note(segment), *_cut_note(segment))

    def environment(self) -> Mapping[str, str]:
        """Nothing: the frames depend on the key's inputs alone."""
        return {}

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Nothing serves several segments."""

    @property
    def one_at_a_time(self) -> bool:
        """There is no model."""
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

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        """Draw exactly `segment.frames` frames.

        Errors: RenderError when the anchor's file is gone or no longer holds the planned pixels.
        """
        import numpy as np

        from svi_story.engines.animatic.slate import Slate

        anchor = self._anchor(segment.anchor)
        slate = Slate(segment)
        poses = path(_pose(latents["start"]), _pose(latents["pose"]), segment.frames, segment.overlap)
        for frame, pose in enumerate(poses):
            picture = view(anchor, pose)
            slate.burn(picture, frame)
            yield np.array(picture, dtype=np.uint8)

    def _anchor(self, anchor: Anchor) -> Image.Image:
        if anchor.pixels not in self._pictures:
            from PIL import Image

            self._pictures.clear()
            self._pictures[anchor.pixels] = Image.fromarray(open_anchor(anchor))
        return self._pictures[anchor.pixels]


def _array(pose: Pose) -> NDArray[np.float64]:
    import numpy as np

    return np.array([pose.x, pose.y, pose.zoom], dtype=np.float64)


def _carried(carry: Carry, segment: Segment) -> Pose:
    """Where the segment before left the camera. Raises RenderError for where no camera of ours is left."""
    array = carried(carry, "pose", segment)
    if array.shape != (3,) or not is_possible(_pose(array)):
        raise not_ours(segment)
    return _pose(array)


def _pose(array: NDArray[np.generic]) -> Pose:
    x, y, zoom = array.tolist()
    return Pose(x, y, zoom)


def _missing_note(segment: Segment) -> tuple[str, ...]:
    from svi_story.media.text import unseen

    missing = unseen(segment.prompt)
    return (f"{missing}, or change the prompt",) if missing else ()


def _cut_note(segment: Segment) -> tuple[str, ...]:
    from svi_story.engines.animatic.slate import prompt_is_cut

    if not prompt_is_cut(segment):
        return ()
    note = (
        f"the prompt is cut on the slate of {segment.clip}: {len(segment.prompt)} characters are more than "
        f"{segment.size.width}x{segment.size.height} has room for; shorten it to read it whole"
    )
    return (note,)
