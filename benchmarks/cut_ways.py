"""Ways to cut clips into a film, each run as a process of its own: `cut_ways.py WAY FOLDER CLIPS CRF`.

The folder holds lossless clips, `footage-*.avi`, and `bed.wav`; a film of more clips shows them
again. The film is `WAY.mp4`. Every way encodes with libx264, medium, and four threads.
"""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import cycle, islice, takewhile
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from svi_story.cache.frames import Frames
from svi_story.cut.audio import Soundtrack, Track, mix, samples_of
from svi_story.cut.encode import Encoding, encode_piece
from svi_story.cut.extras import Extras
from svi_story.cut.ffmpeg import import_moviepy
from svi_story.cut.join import count_frames, join
from svi_story.cut.timeline import Piece, Span
from svi_story.media.audio import count_samples
from svi_story.plan.model import Recording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FPS = Fraction(15)
CAPTION = "It has been raining since Tuesday."


def pieces(clips: Sequence[Path], film: Path, crf: int) -> None:
    """Ours, as `render` does: every clip is encoded once, and after each one what is encoded is joined."""
    encoding, turn, joining = _encoding(clips[0], crf), Lock(), Lock()
    files = [_piece(film, number) for number in range(1, len(clips) + 1)]

    def encode(number: int) -> None:
        _encode(clips[number], files[number], crf, turn=turn)
        with joining:
            made = list(takewhile(Path.exists, files))
            if made and len(made) < len(files):
                join(made, encoding, film.with_name("preview.mp4"), Extras())

    with ThreadPoolExecutor(max_workers=2) as threads:
        list(threads.map(encode, range(len(clips))))
    join(files, encoding, film, Extras())


def again(clips: Sequence[Path], film: Path, crf: int) -> None:
    """Ours, when the caption of one clip in the middle changed and the others' pieces are there."""
    made = [_piece(film.with_name("pieces.mp4"), number) for number in range(1, len(clips) + 1)]
    middle = len(clips) // 2
    made[middle] = film.with_name("changed.mp4")
    join(made, _encode(clips[middle], made[middle], crf, CAPTION), film, Extras())


def music(clips: Sequence[Path], film: Path, crf: int) -> None:
    """Ours, when the music changed and all pieces are there."""
    made = [_piece(film.with_name("pieces.mp4"), number) for number in range(1, len(clips) + 1)]
    encoding, bed = _encoding(clips[0], crf), film.with_name("bed.wav")
    frames = sum(count_frames(piece) for piece in made)
    length = samples_of(frames / FPS)
    recording = Recording(bed, hashlib.sha256(bed.read_bytes()).hexdigest(), count_samples(bed))
    track = Track(recording, 0.8, 0, length, samples_of(Fraction(1)), samples_of(Fraction(2)), loop=True)
    sound = film.with_name("sound.m4a")
    mix(Soundtrack(length, (track,)), sound)
    join(made, encoding, film, Extras(audio=sound))


def _piece(film: Path, number: int) -> Path:
    return film.with_name(f"{film.stem}-{number:03}.mp4")


def _encoding(clip: Path, crf: int) -> Encoding:
    with Frames(clip) as frames:
        return Encoding(frames.width, frames.height, FPS, crf)


def _encode(clip: Path, piece: Path, crf: int, caption: str = "", turn: Lock | None = None) -> Encoding:
    encoding = _encoding(clip, crf)
    with Frames(clip) as frames:
        span = Span(str(clip), 0, len(frames))
    run = Piece((span,), caption=caption)
    encode_piece(run, lambda key: Frames(Path(key)), encoding, piece, lambda _done, _all: None, turn)
    return encoding


def moviepy(clips: Sequence[Path], film: Path, crf: int) -> None:
    """moviepy's own: its clips of files, concatenated, written once."""
    import_moviepy()
    from moviepy import VideoFileClip, concatenate_videoclips

    whole = concatenate_videoclips([VideoFileClip(str(clip), audio=False) for clip in clips])
    whole.write_videofile(
        str(film),
        fps=float(FPS),
        codec="libx264",
        preset="medium",
        threads=4,
        audio=False,
        ffmpeg_params=["-crf", str(crf)],
        logger=None,
    )


def upstream(clips: Sequence[Path], film: Path, crf: int) -> None:
    """As SVI's own scripts do: all frames as pictures in memory, the whole film written after every clip."""
    import numpy as np
    from imageio.v2 import get_writer
    from PIL import Image

    pictures: list[Image.Image] = []
    for clip in clips:
        with Frames(clip) as frames:
            pictures += [Image.fromarray(frame) for frame in frames]
        parameters = ["-crf", str(crf), "-preset", "medium", "-threads", "4"]
        writer = get_writer(film, fps=float(FPS), codec="libx264", quality=None, ffmpeg_params=parameters)
        with writer:
            for picture in pictures:
                writer.append_data(np.asarray(picture))


WAYS: dict[str, Callable[[Sequence[Path], Path, int], None]] = {
    "pieces": pieces,
    "again": again,
    "music": music,
    "moviepy": moviepy,
    "upstream": upstream,
}


def main() -> None:
    way, folder, count, crf = sys.argv[1:]
    footage = sorted(Path(folder).glob("footage-*.avi"))
    WAYS[way](list(islice(cycle(footage), int(count))), Path(folder, f"{way}.mp4"), int(crf))


if __name__ == "__main__":
    main()
