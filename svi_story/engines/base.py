"""The contract between the renderer and the engines, and what engines share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from svi_story.errors import InputError, RenderError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from svi_story.plan.keys import Identity
    from svi_story.plan.model import Anchor, Segment

    Frame = NDArray[np.uint8]
    """One picture: height x width x 3, RGB."""
    Latents = Mapping[str, NDArray[np.generic]]
    """What an engine needs to decode a segment again and to continue from it, by name."""
    OnStep = Callable[[int, int], None]
    """Called after every step with (steps done, steps in all)."""


@dataclass(frozen=True)
class Carry:
    """What the parent segment hands over, whichever engine rendered it.

    It always comes from the store, even right after rendering: from the finished segment, or from its
    finished latents where no frames are needed.
    """

    engine: str
    """The name of the engine that rendered the parent: latents mean nothing to another engine."""
    latents: Latents
    last_frames: Sequence[Frame]
    """The parent's last frames, the newest last: as many as the segment's overlap, if it has as many; none
    where the segment's phases need none."""

    @property
    def last_frame(self) -> Frame:
        """The parent's last frame."""
        return self.last_frames[-1]


@dataclass(frozen=True)
class Phase:
    """A run of a segment's work that one model does."""

    model: str
    """What must be loaded for it."""
    place: int
    """Phases are done in this order; those in one place can be done for many segments one after another."""
    until: int
    """Sampling steps that are done after it."""
    passes: int
    """Forward passes in it."""
    lora_set: str = ""
    """The model's LoRAs, as a name: where two segments have the same, no weight changes between them."""
    needs_frames: bool = True
    """Whether it needs the parent's frames. Where a parent of the same engine hands over latents alone, it
    can begin before they are decoded."""


class Checkpoint(Protocol):
    """Where an engine keeps a segment's unfinished state, so that a killed render resumes from there."""

    def load(self) -> Latents | None:
        """The newest state that was saved whole, or None."""
        ...

    def save(self, state: Latents) -> None:
        """Replace the state, durably and atomically."""
        ...


class Engine(Protocol):
    """Same key, same machine, same versions: same frames.

    Enter it before sampling: it owns its models and frees them on exit.
    """

    @property
    def identity(self) -> Identity:
        """Name, revision and the inputs that this engine's frames depend on."""
        ...

    def notes(self, segment: Segment) -> tuple[str, ...]:
        """What the user should know before this segment is rendered; empty when there is nothing."""
        ...

    def environment(self) -> Mapping[str, str]:
        """What on this machine may alter numbers besides the key's inputs: recorded with every entry."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def prepare(self, segments: Sequence[Segment]) -> None:
        """Do once what serves all of these segments, before the first is sampled."""
        ...

    @property
    def one_at_a_time(self) -> bool:
        """Whether its models take turns on the device, so that every change between them costs."""
        ...

    @property
    def decodes_beside(self) -> bool:
        """Whether there is room on the device to decode a segment while another one is sampled."""
        ...

    def phases(self, segment: Segment) -> Sequence[Phase]:
        """How a segment is sampled, model by model, from the first step to the last."""
        ...

    def advance(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep, phase: Phase
    ) -> None:
        """Sample to the end of a phase that is not the last, and keep the state in the checkpoint.

        Continuing with `sample` gives the same latents as `sample` alone.
        """
        ...

    def sample(
        self, segment: Segment, carry: Carry | None, checkpoint: Checkpoint, on_step: OnStep
    ) -> Latents:
        """Compute a segment's final latents.

        `carry` is None where a chain starts. Where it comes from another engine, use only its frames.
        """
        ...

    def preview(self) -> Sequence[Frame]:
        """Small pictures of the segment as it is predicted after the step that was done last.

        One for each of its latents along time; none where that makes no sense. Only called by `on_step`, and
        never changes what is sampled.
        """
        ...

    def decode(self, segment: Segment, latents: Latents) -> Iterator[Frame]:
        """Turn final latents into exactly `segment.frames` frames.

        Called in another thread than `sample`, and beside it where `decodes_beside`; otherwise `sample` waits
        for the first frame, and the others need nothing of the device. When the engine is exited before the
        first one, it ends with an error soon; after it, the others still come.
        """
        ...


def open_anchor(anchor: Anchor) -> Frame:
    """The picture after fit, [height, width, 3].

    Raises RenderError when the file is gone, or no longer holds the planned pixels.
    """
    from svi_story.media.guard import fitted_picture
    from svi_story.media.images import pixels_digest

    try:
        pixels = fitted_picture(anchor.path, anchor.size.width, anchor.size.height, anchor.fit)
    except InputError as error:
        raise RenderError(*error.problems) from error
    if pixels_digest(pixels) != anchor.pixels:
        raise RenderError(
            f"the image {anchor.path} changed while the film was being rendered; "
            "run the same command again, which continues with the image as it is now"
        )
    return pixels


def carried_array(carry: Carry, name: str, segment: Segment) -> NDArray[np.generic]:
    """An array of the parent's latents: finite floats, though a bundle may be forged. Raises RenderError."""
    import numpy as np

    array = carry.latents.get(name)
    if array is None or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise foreign_carry_error(segment)
    return array


def foreign_carry_error(segment: Segment) -> RenderError:
    """The error for a carry that this engine cannot have written."""
    return RenderError(
        f"what {segment.clip} continues from was not rendered by this engine: it is damaged or forged; "
        "render everything again, with --force all"
    )
