"""Audio files from strangers, opened safely."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

RATE = 48_000
"""Samples a second, of every sound in the house."""


def count_samples(path: Path) -> int:
    """Read a recording to its end; its length in samples at `RATE`. Raises InputError, with the cure."""
    import av

    try:
        with av.open(str(path.absolute()), "r") as container:
            resampler = av.AudioResampler(format="flt", layout="stereo", rate=RATE)
            frames = container.decode(audio=0)
            count = sum(part.samples for frame in frames for part in resampler.resample(frame))
            return count + sum(part.samples for part in resampler.resample(None))
    except (av.FFmpegError, IndexError) as error:
        raise InputError(
            f"{path} holds no sound that can be read ({error}); save it as WAV or MP3"
        ) from error
