"""Clips as files that editors open: one file each, in an editor's codec, every frame by itself.

A file is written once from the same frames: a note beside it has their hashes, and the file's.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from svi_story.cut.join import count_frames
from svi_story.files import atomic_file, disk, read_regular, sha256_file, unwritable
from svi_story.plan.keys import key_of, version_of
from svi_story.portable import is_reserved

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction
    from pathlib import Path

    from svi_story.cache.outputs import Publish
    from svi_story.cut.frames import Frame
    from svi_story.cut.timeline import Span
    from svi_story.plan.keys import Json
    from svi_story.plan.model import Size

MEDIA_VERSION = 2
"""Raised whenever the same frames make another file than before."""

PIXELS = "yuv422p10le"
BT709, VIDEO_RANGE = 1, 1
"""As H.273 numbers the colours of HD video and its range of levels."""


class FrameSequence(Protocol):
    """Frames of one size, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...


@dataclass(frozen=True)
class MediaCodec:
    """An editor's codec, in a QuickTime file: 4:2:2, 10 bits, BT.709."""

    name: str
    """What it is called in a file's name."""
    title: str
    encoder: str
    options: tuple[tuple[str, str], ...]
    least: tuple[int, int] = (0, 0)
    """The smallest picture that it can hold: width, height."""

    def refuses(self, size: Size) -> str:
        """Why it cannot hold pictures of a size; empty when it can."""
        width, height = self.least
        if size.width >= width and size.height >= height:
            return ""
        return (
            f"{self.title} holds no picture smaller than {width}x{height}, and the board's are {size}; "
            "use --media prores, or a larger resolution"
        )


CODECS = {
    "prores": MediaCodec("prores", "ProRes 422 HQ", "prores_ks", (("profile", "3"), ("vendor", "apl0"))),
    "dnxhr": MediaCodec("dnxhr", "DNxHR HQX", "dnxhd", (("profile", "dnxhr_hqx"),), least=(256, 120)),
}


LARGEST_NOTE = 2**20
"""Bytes; the note of a clip of 100 spans takes 10 kB."""


def media_path(folder: Path, name: str, codec: MediaCodec) -> Path:
    """A clip's file; its name stays when other clips come and go, so that an editor finds it again."""
    return folder / f"{'_' if is_reserved(name) else ''}{name}.{codec.name}.mov"


def media_inputs(spans: Sequence[Span], codec: MediaCodec, size: Size, fps: Fraction) -> dict[str, Json]:
    """All that decides what a file shows; the spans' keys are the hashes of their frames."""
    return {
        "version": MEDIA_VERSION,
        "encoder": codec.encoder,
        "options": dict(codec.options),
        "pixels": PIXELS,
        "size": [size.width, size.height],
        "fps": str(fps),
        "spans": [[span.key, span.start, span.stop] for span in spans],
        "av": version_of("av"),
    }


def is_current(target: Path, inputs: dict[str, Json]) -> bool:
    """Whether the file exists, encoded from these inputs, and still what it was then."""
    try:
        note = read_note(target)
        if note["made_from"] != key_of(inputs) or note["bytes"] != target.stat().st_size:
            return False
        return bool(note["sha256"] == sha256_file(target))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def is_as_noted(target: Path) -> bool:
    """Whether the file exists and is what its note says."""
    try:
        note = read_note(target)
        return note["bytes"] == target.stat().st_size and bool(note["sha256"] == sha256_file(target))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def is_note(path: Path) -> bool:
    """Whether a file is the note of a clip's file."""
    try:
        found = json.loads(read_regular(path, LARGEST_NOTE))
        return {"made_from", "bytes", "sha256", "inputs"} <= set(found)
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_note(target: Path) -> dict[str, Any]:
    """The note of a clip's file. Raises OSError or ValueError where it cannot be read."""
    found: dict[str, Any] = json.loads(read_regular(note_path(target), LARGEST_NOTE))
    return found


def write_media(
    target: Path,
    frames: FrameSequence,
    codec: MediaCodec,
    fps: Fraction,
    inputs: dict[str, Json],
    publish: Publish = atomic_file,
) -> None:
    """Write all frames; the file gets its name when it is complete and counted, then its note is written.

    Frames are read one by one. Raises RenderError where the disk or the codec fails.
    """
    import av

    count = len(frames)
    with publish(target) as temporary:
        try:
            _encode(temporary, frames, codec, fps)
        except av.FFmpegError as error:
            raise unwritable(target, error.strerror or str(error)) from error
        arrived = count_frames(temporary)
        if arrived != count:
            raise unwritable(target, f"{arrived} of its {count} frames arrived")
    with disk(target, "describing a clip's file"):
        note = {
            "made_from": key_of(inputs),
            "bytes": target.stat().st_size,
            "sha256": sha256_file(target),
            "inputs": inputs,
        }
        with publish(note_path(target)) as temporary:
            temporary.write_bytes(json.dumps(note, indent=1).encode() + b"\n")


def note_path(target: Path) -> Path:
    """Where the note about a clip's file lies: beside it."""
    return target.with_name(f"{target.name}.json")


def _encode(path: Path, frames: FrameSequence, codec: MediaCodec, fps: Fraction) -> None:
    import av

    container = av.open(str(path.absolute()), "w", format="mov")
    try:
        height, width, _ = frames[0].shape
        stream = container.add_stream(codec.encoder, rate=fps, options=dict(codec.options))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXELS
        context = stream.codec_context
        context.color_range = VIDEO_RANGE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        for number in range(len(frames)):
            rgb = av.VideoFrame.from_ndarray(frames[number], format="rgb24")
            # One thread: swscale writes past the end of these rows, where another thread's rows begin.
            picture = rgb.reformat(format=PIXELS, dst_colorspace="ITU709", dst_color_range="MPEG", threads=1)
            picture.pts, picture.time_base = number, 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    except BaseException:
        with suppress(av.FFmpegError):  # closing writes the index, which a full disk refuses again
            container.close()
        raise
    container.close()
