"""Recordings for the tests: known samples in any kind of file."""

from __future__ import annotations

import hashlib
import struct
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

from svi_story.media.audio import count_samples
from svi_story.plan.model import Recording

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CODECS = {
    "wav": "pcm_f32le",
    "flac": "flac",
    "aiff": "pcm_s16be",
    "mp3": "libmp3lame",
    "opus": "libopus",
    "oga": "flac",
    "m4a": "aac",
    "mp4": "alac",
    "mkv": "aac",
    "webm": "libopus",
    "aac": "aac",
}


def write_sound(
    path: Path, samples: NDArray[np.floating], rate: int = 48_000, layout: str = "", codec: str = ""
) -> Path:
    """Write n x channels samples; the suffix chooses the kind."""
    channels = samples.shape[1]
    with av.open(str(path), "w", options={"movie_timescale": str(rate)}) as file:
        stream = file.add_stream(codec or CODECS[path.suffix[1:]], rate=rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = layout or ("mono" if channels == 1 else "stereo")
        for first in range(0, len(samples), 4096):
            part = np.ascontiguousarray(samples[first:][:4096], np.float32).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout=stream.layout.name)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def wav_bytes(
    data: bytes,
    *,
    rate: int = 48_000,
    channels: int = 2,
    bits: int = 16,
    kind: int = 1,
    claim: int | None = None,
) -> bytes:
    """A WAV file by hand, with whatever its header claims."""
    claimed = len(data) if claim is None else claim
    frame = channels * bits // 8
    fields = (16, kind, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    head = struct.pack("<4sI4s", b"RIFF", min(claimed + 36, 2**32 - 1), b"WAVE")
    return head + b"fmt " + struct.pack("<IHHIIHH", *fields) + struct.pack("<4sI", b"data", claimed) + data


def impulse(samples: int, at: int, height: float = 0.8) -> NDArray[np.float32]:
    """Silence but for one sample, in stereo."""
    sound = np.zeros((samples, 2), np.float32)
    sound[at] = height
    return sound


def noise(samples: int, seed: int = 0, height: float = 0.25) -> NDArray[np.float32]:
    """Noise in stereo, another on each side."""
    return np.random.default_rng(seed).uniform(-height, height, (samples, 2)).astype(np.float32)


def recording(path: Path) -> Recording:
    """A file as the plan knows it."""
    return Recording(path, hashlib.sha256(path.read_bytes()).hexdigest(), count_samples(path))


def decoded(path: Path) -> NDArray[np.float32]:
    """What PyAV's own decoder makes of a stereo file: n x 2."""
    with av.open(str(path)) as file:
        parts = [frame.to_ndarray().T for frame in file.decode(audio=0)]
    return np.concatenate(parts).astype(np.float32)
