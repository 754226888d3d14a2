"""How a film is encoded, and all that decides the bytes of its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.cut.tools import encoder_versions

if TYPE_CHECKING:
    from fractions import Fraction

    from svi_story.cut.timeline import Piece, Span
    from svi_story.plan.keys import Json

PIECE_VERSION = 1
"""Raised whenever the same inputs make other pieces than before."""

CODEC = "libx264"
PRESET = "medium"
THREADS = 4
"""x264's output depends on how many there are, so the machine does not choose."""


@dataclass(frozen=True)
class Encoding:
    """How a film is encoded: h264 in yuv420p, BT.709, closed GOPs. Even sides, 1 to 240 frames a second.

    Raises ValueError for a rate whose fraction ffmpeg cannot hold.
    """

    width: int
    height: int
    fps: Fraction
    crf: int

    def __post_init__(self) -> None:
        if max(self.fps.numerator, self.fps.denominator) > 1_001_000:
            raise ValueError(f"{self.fps} frames a second is finer than ffmpeg can hold")

    @property
    def timescale(self) -> int:
        """Ticks of the film's clock in a second, 10,000 or more; every frame lasts a whole number of them."""
        ticks = self.fps.numerator
        while ticks < 10_000:
            ticks *= 2
        return ticks

    @property
    def options(self) -> tuple[str, ...]:
        """The ffmpeg options after moviepy's own. They correct its rate, which it rounds to two decimals."""
        rate, tick = str(self.fps), str(1 / self.fps)
        timescale = str(self.timescale)
        filters = (
            "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int+bitexact",
            "format=yuv420p",
            "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709",
            f"settb={tick}",
            "setpts=N",
        )
        return (
            *("-hide_banner", "-nostats", "-loglevel", "error"),
            *("-vf", ",".join(filters), "-r", rate),
            *("-crf", str(self.crf)),
            # stitchable: headers do not depend on the pictures, so every piece of a film has the same
            *("-x264-params", "stitchable=1:open-gop=0"),
            *("-video_track_timescale", timescale, "-movie_timescale", timescale),
            *("-map_metadata", "-1", "-f", "mp4"),
        )

    def identity(self) -> dict[str, Json]:
        """All that decides a piece's bytes besides its frames. Raises RenderError without an ffmpeg."""
        ffmpeg, moviepy = encoder_versions()
        return {
            "version": PIECE_VERSION,
            "size": [self.width, self.height],
            "codec": CODEC,
            "preset": PRESET,
            "threads": THREADS,
            "options": list(self.options),
            "ffmpeg": ffmpeg,
            "moviepy": moviepy,
        }


def piece_inputs(piece: Piece, encoding: Encoding) -> dict[str, Json]:
    """What a piece's content address is made from: same inputs, same machine, same bytes."""
    return {
        "encoding": encoding.identity(),
        "spans": _spans(piece.spans),
        "under": _spans(piece.under),
    }


def _spans(spans: tuple[Span, ...]) -> list[Json]:
    return [[span.key, span.start, span.stop] for span in spans]
