"""The frames of a piece: read from the entries that are opened for it, faded into each other."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import numpy as np

from svi_story.commands import suggest
from svi_story.errors import RenderError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

    from svi_story.cut.timeline import FrameRef, Piece

    Frame = NDArray[np.uint8]
    """One picture: height x width x 3, RGB."""
    OpenFrames = Callable[[str], "FrameSource"]
    """Opens the frames of one entry, by key."""


class FrameSource(Protocol):
    """The frames of one entry, in any order, any number of times."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...

    def close(self) -> None:
        """Close the file. Called once, also after an error."""
        ...


class PieceFrames:
    """The frames of one piece of a film, each computed when it is read.

    One entry is open at a time, two inside a fade; memory does not grow with the number of frames. Use it
    as a context manager: it closes what it opened.
    """

    def __init__(self, piece: Piece, open_frames: OpenFrames) -> None:
        self._piece = piece
        self._over = _EntryReader(open_frames)
        self._under = _EntryReader(open_frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:  # the second is closed even if closing the first one fails
            stack.callback(self._over.close)
            stack.callback(self._under.close)

    def __len__(self) -> int:
        return self._piece.frames

    def __getitem__(self, index: int) -> Frame:
        """Frame `index` of the piece. Raises RenderError where an entry has too few frames."""
        what = self._piece.frame(index)
        picture = self._over.read(what.over)
        if what.under is not None:
            under = self._under.read(what.under)
            picture = blend(under, picture, what.weight.numerator, what.weight.denominator)
        return picture


class Still:
    """A picture repeated for a number of frames."""

    def __init__(self, picture: Frame, frames: int) -> None:
        self._picture = picture
        self._frames = frames

    def __len__(self) -> int:
        return self._frames

    def __getitem__(self, index: int, /) -> Frame:
        if not 0 <= index < self._frames:
            raise IndexError(f"frame {index} of {self._frames}")
        return self._picture

    def close(self) -> None:
        """Nothing is open."""


def blend(under: Frame, over: Frame, part: int, whole: int) -> Frame:
    """`part`/`whole` of `over` and the rest of `under`, in integers, halves rounded up."""
    total = under.astype(np.uint32) * np.uint32(whole - part)
    total += over.astype(np.uint32) * np.uint32(part)
    total += np.uint32(whole // 2)
    return (total // np.uint32(whole)).astype(np.uint8)


class _EntryReader:
    """Reads one entry after another and keeps only the last one open."""

    def __init__(self, open_frames: OpenFrames) -> None:
        self._open_frames = open_frames
        self._key = ""
        self._frames: FrameSource | None = None

    def read(self, source: FrameRef) -> Frame:
        if self._frames is None or self._key != source.key:
            self.close()
            self._frames, self._key = self._open_frames(source.key), source.key
        frames = len(self._frames)
        if source.frame >= frames:
            raise RenderError(
                f"entry {source.key} holds {frames} frames, but the film needs its frame {source.frame}; "
                f"run `{suggest('cache verify')}`, then render again"
            )
        return self._frames[source.frame]

    def close(self) -> None:
        frames, self._frames = self._frames, None
        if frames is not None:
            frames.close()
