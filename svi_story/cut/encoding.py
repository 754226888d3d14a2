"""How a film is encoded, and all that decides the bytes of its pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svi_story.cut.tools import encoder_versions

if TYPE_CHECKING:
    from fractions import Fraction

    from svi_story.cut.timeline import Piece, Span
    from svi_story.plan.keys import Json

PIECE_VERSION = 2
"""Raised whenever the same inputs make other pieces than before."""

THREADS = 4
"""x264's output depends on how many there are, so the machine does not choose."""


@dataclass(frozen=True)
class Codec:
    """An encoder, and what makes the pieces of one film alike."""

    encoder: str
    """ffmpeg's name of it."""
    options: tuple[str, ...]
    reorder: int
    """Frames that it may send ahead of their turn. The whole film waits for as many, so that its decoding
    clock runs evenly across every join, whatever a short piece does without."""


CODECS = {
    # stitchable: headers do not depend on the pictures, so every piece of a film has the same
    "h264": Codec("libx264", ("-x264-params", "stitchable=1:open-gop=0"), reorder=2),
    # a closed GOP of ten seconds at most; SVT-AV1's output does not depend on its threads
    "av1": Codec(
        "libsvtav1", ("-g", "150", "-svtav1-params", "enable-overlays=0:irefresh-type=2"), reorder=0
    ),
}


@dataclass(frozen=True)
class Encoding:
    """How a film is encoded: yuv420p, BT.709, closed GOPs. Even sides, 1 to 240 frames a second.

    Raises ValueError for a rate whose fraction ffmpeg cannot hold.
    """

    width: int
    height: int
    fps: Fraction
    crf: int
    name: Literal["h264", "av1"] = "h264"
    preset: str = "medium"

    def __post_init__(self) -> None:
        if max(self.fps.numerator, self.fps.denominator) > 1_001_000:
            raise ValueError(f"{self.fps} frames a second is finer than ffmpeg can hold")

    @property
    def codec(self) -> Codec:
        """The encoder."""
        return CODECS[self.name]

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
            *self.codec.options,
            *("-video_track_timescale", timescale, "-movie_timescale", timescale),
            *("-map_metadata", "-1", "-f", "mp4"),
        )

    def identity(self) -> dict[str, Json]:
        """All that decides a piece's bytes besides its frames. Raises RenderError without an ffmpeg."""
        ffmpeg, moviepy = encoder_versions()
        return {
            "version": PIECE_VERSION,
            "size": [self.width, self.height],
            "codec": self.codec.encoder,
            "preset": self.preset,
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
        "caption": piece.caption,
        "ramps": [[ramp.start, ramp.frames, ramp.rising] for ramp in piece.ramps],
        "pace": [str(piece.pace.rate), str(piece.pace.offset)],
    }


def _spans(spans: tuple[Span, ...]) -> list[Json]:
    return [[span.key, span.start, span.stop] for span in spans]
