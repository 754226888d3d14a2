"""A film with sound, chapters and captions: made, taken apart, and read by the other ffmpeg."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

from svi_story.cut.ffmpeg import ffmpeg_path
from svi_story.cut.mp4 import XMP, Box, boxes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RATE = 48_000


def clicks(path: Path, samples: int, *places: int) -> Path:
    """An .m4a of this many samples, silent but for a click at each of these places."""
    wave = np.zeros((2, samples), np.float32)
    wave[:, list(places)] = 0.9
    with av.open(str(path), "w", format="ipod") as file:
        stream = file.add_stream("aac", rate=RATE, layout="stereo", bit_rate=192_000)
        for start in range(0, samples, 1024):
            part = np.ascontiguousarray(wave[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def heard(path: Path) -> NDArray[np.float32]:
    """The film's left channel as the ffmpeg program hears it."""
    command = [ffmpeg_path(), "-v", "warning", "-i", str(path), "-map", "0:a", "-f", "f32le", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    return np.frombuffer(done.stdout, np.float32)[::2]


def heard_by_libav(path: Path) -> NDArray[np.float32]:
    """The film's left channel through PyAV, every frame at its own time stamp."""
    with av.open(str(path)) as film:
        frames = list(film.decode(audio=0))
    wave = np.zeros(sum(frame.samples for frame in frames), np.float32)
    for frame in frames:
        assert frame.pts is not None
        wave[frame.pts : frame.pts + frame.samples] = frame.to_ndarray()[0]
    return wave


def loudest(wave: NDArray[np.float32]) -> int:
    return int(np.abs(wave).argmax())


def top_boxes(path: Path) -> list[Box]:
    with path.open("rb") as file:
        return list(boxes(file, 0, path.stat().st_size))


def xmp_of(path: Path) -> bytes:
    """The XMP packet of a film."""
    (box,) = (box for box in top_boxes(path) if box.kind == b"uuid")
    content = path.read_bytes()[box.start : box.stop]
    assert content.startswith(XMP)
    return content[len(XMP) :]


def texts(path: Path) -> list[tuple[Fraction, Fraction, str]]:
    """Every packet of the caption track: start and end in seconds, and its words."""
    with av.open(str(path)) as film:
        return [
            (
                (packet.pts or 0) * packet.time_base,
                ((packet.pts or 0) + (packet.duration or 0)) * packet.time_base,
                bytes(packet)[2:].decode(),
            )
            for packet in film.demux(subtitles=0)
            if packet.size
        ]
