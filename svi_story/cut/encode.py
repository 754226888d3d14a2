"""The film's pieces, each encoded once: moviepy plays an integer-indexed clip, ffmpeg encodes its frames."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from svi_story.cut.captions import caption_over, darken
from svi_story.cut.ffmpeg import (
    encoder_versions,
    ffmpeg_environment,
    ffmpeg_path,
    import_moviepy,
    portable_options,
)
from svi_story.cut.frames import PieceFrames
from svi_story.cut.join import count_frames
from svi_story.files import atomic_file, unwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from fractions import Fraction
    from pathlib import Path
    from typing import IO

    from moviepy import VideoClip

    from svi_story.cut.frames import Frame, OpenFrames
    from svi_story.cut.timeline import Piece, Span
    from svi_story.plan.keys import Json
    from svi_story.plan.model import FilmPlan

    OnFrame = Callable[[int, int], None]
    """Called after every frame with (frames done, frames in all)."""


PIECE_VERSION = 2
"""Raised whenever the same inputs give other pieces than before."""

THREADS = 4
"""x264's output depends on the number of threads, so it is the same on every machine."""


@dataclass(frozen=True)
class Codec:
    """An encoder, with the options that make the pieces of one film compatible."""

    encoder: str
    """ffmpeg's name of it."""
    options: tuple[str, ...]
    reorder: int
    """How many frames it may reorder. The film delays decoding times by as many frames, so that they increase
    evenly across every join, even if a short piece needs less."""


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


def encoding_of(plan: FilmPlan) -> Encoding:
    """How the film's pieces are encoded."""
    size, cut = plan.size, plan.cut
    return Encoding(size.width, size.height, cut.fps, cut.crf, cut.codec, cut.preset)


def piece_inputs(piece: Piece, encoding: Encoding) -> dict[str, Json]:
    """The inputs of a piece's key: same inputs, same machine, same bytes."""
    return {
        "encoding": encoding.identity(),
        "spans": _spans(piece.spans),
        "under": _spans(piece.under),
        "caption": piece.caption,
        **({"caption_frames": [*piece.caption_frames]} if piece.caption_frames else {}),
        "ramps": [[fade.start, fade.frames, fade.rising] for fade in piece.black_fades],
        "pace": [str(piece.conversion.rate), str(piece.conversion.offset)],
    }


def _spans(spans: tuple[Span, ...]) -> list[Json]:
    return [[span.key, span.start, span.stop] for span in spans]


def encode_piece(
    piece: Piece,
    open_frames: OpenFrames,
    encoding: Encoding,
    target: Path,
    on_frame: OnFrame,
    turn: AbstractContextManager[object] | None = None,
) -> None:
    """Encode a piece; it gets its name only when it is complete and its frames are counted.

    Frames are read one by one, each entry opened once and at most two at a time. `turn` is held only while
    frames are read: another thread can begin the next piece while x264 empties its queue of this one.
    Raises RenderError where ffmpeg or the disk fails; errors of reading or of `on_frame` are raised
    unchanged. Neither leaves a file or a process behind.
    """
    with atomic_file(target) as temporary:
        try:
            with (
                _ffmpeg(encoding, temporary) as write,
                turn or nullcontext(),
                PieceFrames(piece, open_frames) as frames,
            ):
                film_frames = _compose(piece, frames, encoding).iter_frames(
                    float(encoding.fps), dtype="uint8"
                )
                for done, frame in enumerate(film_frames, start=1):
                    write(frame)
                    on_frame(done, piece.frames)
        except _FfmpegError as stopped:
            raise unwritable(target, str(stopped)) from None
        encoded = count_frames(temporary)
        if encoded != piece.frames:
            raise unwritable(target, f"{encoded} of its {piece.frames} frames arrived")


def _compose(piece: Piece, frames: PieceFrames, encoding: Encoding) -> VideoClip:
    """The piece as a moviepy clip: its frames, then the caption over them, then fades that darken both."""
    import_moviepy()
    from moviepy import VideoClip

    fps = float(encoding.fps)

    def index(seconds: float) -> int:
        return int(seconds * fps + 0.5)

    def frame_at(seconds: float) -> Frame:
        frame = frames[index(seconds)]
        if frame.shape != (encoding.height, encoding.width, 3):  # ffmpeg would read it as skewed pictures
            raise ValueError(
                f"a frame of {encoding.width}x{encoding.height} was due, got shape {frame.shape}"
            )
        return frame

    # moviepy plays int(duration * fps) frames: the quarter frame keeps the last one whatever floats do
    clip = VideoClip(frame_at, duration=(piece.frames + 0.25) / fps)
    if piece.caption:
        overlay = caption_over(piece.caption, encoding.width, encoding.height)
        first, stop = piece.caption_frames or (0, piece.source_frames)

        def captioned(frame: Callable[[float], Frame], seconds: float) -> Frame:
            shown = first <= piece.conversion.source(index(seconds)) < stop
            return overlay.over(frame(seconds)) if shown else frame(seconds)

        clip = clip.transform(captioned)
    if piece.black_fades:
        clip = clip.transform(
            lambda frame, seconds: darken(frame(seconds), piece.frame(index(seconds)).level)
        )
    return clip


class _FfmpegError(Exception):
    """ffmpeg failed; the message gives the reason."""


@contextmanager
def _ffmpeg(encoding: Encoding, path: Path) -> Iterator[Callable[[Frame], None]]:
    """A running ffmpeg, as a function that takes frames. Ended on exit; _FfmpegError if it failed."""
    with _open_log() as log:
        process = _start(encoding, path, log)
        stdin = process.stdin
        assert stdin is not None

        def write(frame: Frame) -> None:
            try:
                stdin.write(frame.tobytes())
            except OSError as error:
                raise _FfmpegError from error

        def close() -> None:
            with suppress(OSError):  # it may have ended before it read everything
                stdin.close()
            process.wait()

        try:
            with suppress(_FfmpegError):  # ffmpeg's log says more
                yield write
            close()
        except BaseException:
            process.kill()
            close()
            raise
        finally:
            process.wait()
        if process.returncode != 0:
            log.seek(0)
            last = " ".join(log.read()[-500:].split())
            what = f"ffmpeg ended with status {process.returncode}"
            raise _FfmpegError(f"{what} ({last})" if last else what)


def _open_log() -> IO[str]:
    try:
        return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise _FfmpegError(f"ffmpeg's log cannot be written ({error})") from error


def _start(encoding: Encoding, path: Path, log: IO[str]) -> subprocess.Popen[bytes]:
    """Start ffmpeg. Not through moviepy's writer, which passes it the whole environment."""
    encoder = encoding.codec.encoder
    size = f"{encoding.width}x{encoding.height}"
    command = [
        *(ffmpeg_path(), "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(encoding.fps)),
        *("-i", "-", "-c:v", encoder, "-preset", encoding.preset, *encoding.options),
        *(*portable_options(encoder), "-threads", str(THREADS)),
        str(path.absolute()),  # a relative name may look like an option or a protocol
    ]
    try:
        return subprocess.Popen(  # noqa: S603 - numbers, and paths that cannot be taken for options
            command,
            env=ffmpeg_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except OSError as error:
        raise _FfmpegError(f"ffmpeg cannot be started: {error}") from error
