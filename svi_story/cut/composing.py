"""What is heard when: moviepy composes the tracks of the film.

moviepy counts in seconds. Every clip is played from its integer-indexed samples, and every sample is asked
for at its middle, (n + 1/2) / 48000, so that no rounding of floats takes one for its neighbour. Fades are
taken there too: sample k of an F-sample fade has the gain (k + 1/2) / F. Looping and ducking are integers of
our own: moviepy's loop makes one clip per round, and it has no ducking.

A second of sound is in memory at a time, and of the recordings only those that are heard then are open.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from svi_story.cut.tools import import_moviepy
from svi_story.errors import InputError, Problem, RenderError
from svi_story.media.audio import RATE, RecordingReader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType
    from typing import Any, Self

    from moviepy import AudioClip
    from numpy.typing import NDArray

    from svi_story.cut.audio import Soundtrack, Track

    Block = NDArray[np.float64]
    """n x 2 samples; full scale is 1.0."""

_BLOCK = RATE


def compose(soundtrack: Soundtrack) -> Generator[Block]:
    """The sum of all tracks, not limited, a second at a time.

    Raises RenderError where a recording is not any more what was planned with.
    """
    import_moviepy()
    from moviepy import CompositeAudioClip

    with _Stage(soundtrack.tracks) as stage:
        for first in range(0, soundtrack.samples, _BLOCK):
            stop = min(first + _BLOCK, soundtrack.samples)
            clips = stage.clips(first, stop)
            moments = (np.arange(first, stop) + 0.5) / RATE
            yield CompositeAudioClip(clips).get_frame(moments) if clips else np.zeros((stop - first, 2))
        stage.clear(soundtrack.samples)


class _Stage:
    """The tracks that are heard at a time, each with its recording open."""

    def __init__(self, tracks: Iterable[Track]) -> None:
        self._waiting = sorted(tracks, key=lambda track: track.start, reverse=True)
        self._playing: list[_Player] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for player in self._playing:
                stack.callback(player.close)

    def clips(self, first: int, stop: int) -> list[AudioClip]:
        """The clips that are heard in [first, stop), which does not lie before what was asked for last."""
        self.clear(first)
        while self._waiting and self._waiting[-1].start < stop:
            self._playing.append(_Player(self._waiting.pop()))
        return [player.clip for player in self._playing]

    def clear(self, first: int) -> None:
        """Let go of what is heard no more. Raises RenderError where somebody wrote into a file meanwhile."""
        for player in [player for player in self._playing if player.track.stop <= first]:
            self._playing.remove(player)
            player.finish()


class _Player:
    """One track as a clip of moviepy's."""

    def __init__(self, track: Track) -> None:
        self.track = track
        self._reader = _opened(track)
        self.clip = self._clip()

    def close(self) -> None:
        """Let go of the recording."""
        self._reader.close()

    def finish(self) -> None:
        """Let go of the recording. Raises RenderError where somebody wrote into it meanwhile."""
        unchanged = self._reader.unchanged()
        self.close()
        if not unchanged:
            raise _changed(self.track)

    def _clip(self) -> AudioClip:
        from moviepy import AudioClip
        from moviepy.audio.fx import AudioFadeIn, AudioFadeOut, MultiplyVolume

        track = self.track
        effects = [MultiplyVolume(track.volume)]
        if track.fade_in:
            effects.append(AudioFadeIn(track.fade_in / RATE))
        if track.fade_out:
            effects.append(AudioFadeOut(track.fade_out / RATE))
        clip = AudioClip(self._frames, duration=track.samples / RATE, fps=RATE).with_effects(effects)
        if track.gain:
            clip = clip.transform(self._ducked)
        return clip.with_start(track.start / RATE)

    def _frames(self, seconds: Any) -> Block:
        if np.isscalar(seconds):  # it wants to know how many channels there are
            return np.zeros(2)
        return self._samples(int(np.floor(seconds[0] * RATE)), len(seconds))

    def _samples(self, first: int, count: int) -> Block:
        """Samples [first, first + count) of the track, silent where it has none."""
        samples = np.zeros((count, 2))
        length = self.track.recording.samples
        at, stop = max(first, 0), min(first + count, self.track.samples)
        while at < stop:
            place = at % length if self.track.loop else at
            part = self._read(place, min(stop - at, length - place))
            if place == 0 and len(part) == length:  # whole rounds at once: a loop may be one sample long
                part = np.tile(part, (max(1, (stop - at) // length), 1))
            samples[at - first :][: len(part)] = part
            at += len(part)
        return samples

    def _read(self, start: int, count: int) -> NDArray[np.float32]:
        try:
            part = self._reader.read(start, count)
        except InputError as error:
            raise RenderError(*error.problems) from error
        if len(part) < count:
            raise _changed(self.track)
        return part

    def _ducked(self, get_frame: Callable[[Any], Block], seconds: Any) -> Block:
        samples = np.floor(np.asarray(seconds) * RATE) + self.track.start
        places, gains = zip(*self.track.gain, strict=True)
        ducked: Block = get_frame(seconds) * np.interp(samples, places, gains)[..., np.newaxis]
        return ducked


def _opened(track: Track) -> RecordingReader:
    try:
        reader = RecordingReader(track.recording.path)
    except InputError as error:
        raise RenderError(*error.problems) from error
    try:
        if reader.digest() != track.recording.sha256:
            raise _changed(track)
    except BaseException:
        reader.close()
        raise
    return reader


def _changed(track: Track) -> RenderError:
    what = "this sound changed while the film was made; run the same command again"
    return RenderError(Problem(what, file=str(track.recording.path)))
