"""Synthetic film: a zoom into noise, a subject moving over it, grain; every frame tells its number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]
    """One picture: height x width x 3, RGB."""

BITS = 16
CELL = 8
"""Pixels; the number is a row of black and white cells in the top left corner."""
GRAIN = 2.0
"""Standard deviation; without grain, a lossless file is far smaller than a film's."""
SLOPE = 1.4
CONTRAST = 45


def footage(frames: int, width: int, height: int, seed: int) -> Iterator[Frame]:
    """Frames about as hard to encode as film: at 832x480, 15 fps and crf 18 some 2 Mbit/s."""
    rng = np.random.default_rng(seed)
    back, subject = (Image.fromarray(_landscape(rng, height, width)) for _ in range(2))
    disc = Image.new("L", (width, height))
    grain = rng.normal(0, GRAIN, (8, height, width, 3)).astype(np.float32)
    for number in range(frames):
        picture = _zoomed(back, 1.05 + 0.15 * number / frames)
        left = round(width * (0.2 + 0.4 * number / frames))
        disc.paste(0, (0, 0, width, height))
        ImageDraw.Draw(disc).ellipse((left, height // 4, left + height // 2, height * 3 // 4), 255)
        picture.paste(_zoomed(subject, 1.3 - 0.1 * number / frames), mask=disc)
        frame = np.clip(np.asarray(picture) + grain[number % len(grain)], 0, 255).astype(np.uint8)
        _stamp(frame, number)
        yield frame


def _zoomed(picture: Image.Image, zoom: float) -> Image.Image:
    """The middle of a picture, to a fraction of a pixel."""
    width, height = picture.width / zoom, picture.height / zoom
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))


def _landscape(rng: np.random.Generator, height: int, width: int) -> Frame:
    """Noise whose amplitude falls with frequency, as in photographs; colours vary less than light."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.maximum(frequency, 1 / max(height, width)) ** -SLOPE
    layers = []
    for weight in (1.0, 0.4, 0.4, 0.4):
        layer = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * spectrum, (height, width))
        layers.append(weight * layer / layer.std())
    light = layers[0]
    colours = np.stack([128 + CONTRAST * (light + colour) for colour in layers[1:]], axis=2)
    pixels: Frame = np.clip(colours, 0, 255).astype(np.uint8)
    return pixels


def _stamp(frame: Frame, number: int) -> None:
    bits = [number >> bit & 1 for bit in range(BITS)]
    frame[:CELL, : BITS * CELL] = np.repeat(np.array(bits, np.uint8) * 255, CELL)[None, :, None]


def numbers_in(film: Path) -> Iterator[int]:
    """The number that every frame of a film tells, in order."""
    import av

    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            light = frame.to_ndarray(format="gray")[CELL // 2, CELL // 2 : BITS * CELL : CELL]
            yield sum(1 << bit for bit, value in enumerate(light.tolist()) if value > 127)


def bed(path: Path, seconds: int = 20, rate: int = 44_100) -> None:
    """Music to lie under a film: a chord, in stereo, as 16-bit WAV."""
    import wave

    times = np.arange(seconds * rate) / rate
    chord = np.sin(2 * np.pi * np.outer(times, (220, 277.18, 329.63))).sum(1) * 8000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(chord.astype("<i2")[:, None], 2, 1).tobytes())
