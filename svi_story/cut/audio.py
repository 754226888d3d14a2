"""The film's sound: recordings placed by sample numbers, mixed, limited and encoded as AAC.

Integers only, at 48 kHz. A film's frame f begins with sample round(f / fps * 48000), halves up; the film ends
with the last of them, so its sound is as long as its picture to the sample.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

import numpy as np

from svi_story.cut.ffmpeg import import_moviepy
from svi_story.cut.timeline import ranges_of
from svi_story.errors import InputError, Problem, RenderError
from svi_story.files import atomic_file, unwritable
from svi_story.media.audio import RATE, RecordingReader
from svi_story.plan.keys import version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from av import AudioFrame
    from moviepy import AudioClip
    from numpy.typing import NDArray

    from svi_story.plan.keys import Json
    from svi_story.plan.model import FilmPlan, Recording, Shot, Sound

    Block = NDArray[np.float64]
    """n x 2 samples; full scale is 1.0."""


MIX_VERSION = 1
"""Raised whenever the same inputs give another sound than before."""

BITRATE = 256_000
"""Bits a second of AAC, more than enough for two channels."""

RAMP = RATE // 4
"""Samples over which the music fades down before a voice, and up after it."""

Envelope = tuple[tuple[int, float], ...]
"""(sample of the film, gain), in order; linear between them, constant before the first and after the last."""


@dataclass(frozen=True)
class Track:
    """One recording in the film, audible in [start, stop). All lengths in samples of the film."""

    recording: Recording
    volume: float
    start: int
    stop: int
    fade_in: int
    """From silence, from `start` on."""
    fade_out: int
    """To silence, which is reached at `stop`."""
    loop: bool = False
    """It starts again, from its first sample, until `stop`."""
    gain: Envelope = ()
    """Further gain, such as ducking; empty for none."""

    @property
    def samples(self) -> int:
        """How long it plays."""
        return self.stop - self.start


@dataclass(frozen=True)
class Soundtrack:
    """All sound of a film."""

    samples: int
    """Its length, which is the film's."""
    tracks: tuple[Track, ...]
    """The music first; then clip by clip. Empty: the film is silent."""


def samples_of(seconds: Fraction) -> int:
    """Seconds in samples, halves rounded up."""
    return floor(seconds * RATE + Fraction(1, 2))


def soundtrack_of(plan: FilmPlan) -> Soundtrack:
    """The film's sound."""
    starts = {clip: first for clip, (first, _) in ranges_of(plan).items()}
    return tracks_of(plan, starts, plan.frames)


def tracks_of(plan: FilmPlan, starts: Mapping[str, int], frames: int) -> Soundtrack:
    """The sound of a film, or of its beginning.

    `starts` has the film's frame at which each clip begins (sounds of clips that are not in it are left out),
    `frames` how many frames the film has; both at the film's rate, cards included. Sounds run on past their
    clip's end, but not past the film's. What fades out is silent where it ends: by itself, or with the film.
    """
    total = samples_of(frames / plan.cut.fps)
    shots = [shot for shot in plan.shots if shot.id in starts]

    def placed(shot: Shot, sounds: Iterable[Sound]) -> Iterator[Track]:
        for sound in sounds:
            start = samples_of(starts[shot.id] / plan.cut.fps + sound.start)
            track = _track(sound, start, min(start + sound.recording.samples, total))
            if track.samples > 0:
                yield track

    voices = [track for shot in shots for track in placed(shot, shot.voices)]
    sounds = [track for shot in shots for track in placed(shot, shot.sounds)]
    return Soundtrack(total, (*_music(plan, voices, total), *voices, *sounds))


def ducked(voices: Iterable[Track], duck: float) -> Envelope:
    """The gain of the music: `duck` while a voice plays, 1 elsewhere, ramps of `RAMP` samples between them.

    Between two voices with less than two ramps of silence it stays down.
    """
    envelope: list[tuple[int, float]] = []
    spans = sorted((voice.start, voice.stop) for voice in voices if voice.volume > 0)
    end = 0
    for start, stop in spans:
        if envelope and start - RAMP < end + RAMP:
            end = max(end, stop)
            envelope[-2:] = [(end, duck), (end + RAMP, 1.0)]
        else:
            end = stop
            envelope += [(start - RAMP, 1.0), (start, duck), (end, duck), (end + RAMP, 1.0)]
    return tuple(envelope)


def audio_inputs(soundtrack: Soundtrack) -> dict[str, Json]:
    """Everything that decides the mixed file's bytes: same inputs, same machine, same bytes."""
    return {
        "version": MIX_VERSION,
        "bitrate": BITRATE,
        "av": version_of("av"),
        "moviepy": version_of("moviepy"),
        "samples": soundtrack.samples,
        "tracks": [
            {
                "recording": track.recording.sha256,
                "volume": track.volume,
                "span": [track.start, track.stop],
                "fades": [track.fade_in, track.fade_out],
                "loop": track.loop,
                "gain": [[sample, gain] for sample, gain in track.gain],
            }
            for track in soundtrack.tracks
        ],
    }


def _track(sound: Sound, start: int, stop: int) -> Track:
    fades = samples_of(sound.fade_in), samples_of(sound.fade_out)
    return Track(sound.recording, sound.volume, start, stop, *fades)


def _music(plan: FilmPlan, voices: Iterable[Track], total: int) -> Iterator[Track]:
    music = plan.cut.music
    if music is not None:
        stop = total if music.loop else min(music.sound.recording.samples, total)
        track = _track(music.sound, 0, stop)
        yield replace(track, loop=music.loop, gain=ducked(voices, music.duck) if music.duck < 1 else ())


_BLOCK = RATE


def compose(soundtrack: Soundtrack) -> Generator[Block]:
    """The sum of all tracks, not limited, a second at a time; only recordings that play then are open.

    moviepy counts in seconds. Every clip is played from its integer-indexed samples, and every sample is read
    at its middle, (n + 1/2) / 48000, so that no rounding of floats takes one for its neighbour. Fades are
    sampled there too: sample k of an F-sample fade has the gain (k + 1/2) / F. Looping and ducking are done
    here in integers: moviepy's loop makes one clip for each repetition, and it has no ducking.

    Raises RenderError where a recording changed since the plan.
    """
    import_moviepy()
    from moviepy import CompositeAudioClip

    with _Mixer(soundtrack.tracks) as mixer:
        for first in range(0, soundtrack.samples, _BLOCK):
            stop = min(first + _BLOCK, soundtrack.samples)
            clips = mixer.clips(first, stop)
            moments = (np.arange(first, stop) + 0.5) / RATE
            yield CompositeAudioClip(clips).get_frame(moments) if clips else np.zeros((stop - first, 2))
        mixer.close_finished(soundtrack.samples)


class _Mixer(ExitStack):
    """The tracks that play at a time, each with its recording open."""

    def __init__(self, tracks: Iterable[Track]) -> None:
        super().__init__()
        self._waiting = sorted(tracks, key=lambda track: track.start, reverse=True)
        self._playing: list[_Player] = []

    def clips(self, first: int, stop: int) -> list[AudioClip]:
        """The clips that play in [first, stop); `first` never decreases from call to call."""
        self.close_finished(first)
        while self._waiting and self._waiting[-1].start < stop:
            player = _Player(self._waiting.pop())
            self.callback(player.close)
            self._playing.append(player)
        return [player.clip for player in self._playing]

    def close_finished(self, first: int) -> None:
        """Close what ends before `first`. Raises RenderError where a file was written to meanwhile."""
        for player in [player for player in self._playing if player.track.stop <= first]:
            self._playing.remove(player)
            player.finish()


class _Player:
    """One track as a moviepy clip."""

    def __init__(self, track: Track) -> None:
        from moviepy import AudioClip
        from moviepy.audio.fx import AudioFadeIn, AudioFadeOut, MultiplyVolume

        self.track = track
        self._reader = _open_recording(track)
        effects = [MultiplyVolume(track.volume)]
        if track.fade_in:
            effects.append(AudioFadeIn(track.fade_in / RATE))
        if track.fade_out:
            effects.append(AudioFadeOut(track.fade_out / RATE))
        clip = AudioClip(self._frames, duration=track.samples / RATE, fps=RATE).with_effects(effects)
        if track.gain:
            clip = clip.transform(self._ducked)
        self.clip = clip.with_start(track.start / RATE)

    def close(self) -> None:
        """Close the recording."""
        self._reader.close()

    def finish(self) -> None:
        """Close the recording. Raises RenderError where it was written to meanwhile."""
        unchanged = self._reader.unchanged()
        self.close()
        if not unchanged:
            raise _changed(self.track)

    def _frames(self, seconds: Any) -> Block:
        """The track's samples at these consecutive times, silent where it has none."""
        if np.isscalar(seconds):  # moviepy asks how many channels there are
            return np.zeros(2)
        first, count = int(np.floor(seconds[0] * RATE)), len(seconds)
        samples = np.zeros((count, 2))
        length = self.track.recording.samples
        at, stop = max(first, 0), min(first + count, self.track.samples)
        while at < stop:
            place = at % length if self.track.loop else at
            part = self._read(place, min(stop - at, length - place))
            if place == 0 and len(part) == length:  # whole repetitions at once: a loop may be one sample long
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


def _open_recording(track: Track) -> RecordingReader:
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
    what = "this sound changed while the film was rendered; run the same command again"
    return RenderError(Problem(what, file=str(track.recording.path)))


_LIMITER = "limit=1:level=0:attack=5:release=50:latency=1"
"""libavfilter's alimiter lowers the volume from 5 ms before a peak over full scale to 50 ms after it;
everything else passes bit for bit, without delay."""


def mix(
    soundtrack: Soundtrack, target: Path, on_samples: Callable[[int, int], None] = lambda _done, _all: None
) -> int:
    """Mix a film's sound into an .m4a: AAC in stereo at 48 kHz, exactly as long as the film.

    It gets its name only when it is complete. Returns how many samples exceeded full scale and were limited.
    `on_samples` is called with (done, in all) for every second of sound. Raises RenderError where a
    recording changed since the plan, or the disk fails.
    """
    import av

    too_loud = 0

    def counted(blocks: Iterable[Block]) -> Iterator[Block]:
        nonlocal too_loud
        for block in blocks:
            too_loud += int(np.count_nonzero((np.abs(block) > 1).any(axis=1)))
            yield block

    with atomic_file(target) as temporary, closing(compose(soundtrack)) as blocks:
        try:
            _encode(limit(counted(blocks)), temporary, lambda done: on_samples(done, soundtrack.samples))
            with av.open(str(temporary), "r") as file:
                stream = file.streams.audio[0]
                is_readable = not any(packet.is_corrupt for packet in file.demux(stream))
                encoded = (stream.duration or 0) if is_readable else 0
        except av.FFmpegError as error:
            raise unwritable(target, getattr(error, "strerror", None) or str(error)) from error
        if encoded != soundtrack.samples:
            raise unwritable(target, f"{encoded} of its {soundtrack.samples} samples arrived")
    return too_loud


def limit(blocks: Iterable[Block]) -> Iterator[Block]:
    """The same samples, none of them over full scale; those that are not near a peak are untouched."""
    import av
    from av.filter import Graph

    graph = Graph()
    nodes = (
        graph.add(
            "abuffer", sample_rate=str(RATE), sample_fmt="dbl", channel_layout="stereo", time_base=f"1/{RATE}"
        ),
        graph.add("alimiter", _LIMITER),
        graph.add("abuffersink"),
    )
    graph.link_nodes(*nodes).configure()

    def ready() -> Iterator[Block]:
        while True:
            try:
                yield np.asarray(graph.pull().to_ndarray(), np.float64).reshape(-1, 2)
            except (av.BlockingIOError, av.EOFError):
                return

    done = 0
    for block in blocks:
        graph.push(_frame(block, done))
        done += len(block)
        yield from ready()
    graph.push(None)
    yield from ready()


def _encode(blocks: Iterable[Block], path: Path, on_samples: Callable[[int], None]) -> None:
    import av

    # the movie's clock counts samples, so that the edit list can express where the sound begins and ends
    with av.open(str(path), "w", format="mp4", options={"movie_timescale": str(RATE)}) as file:
        stream = file.add_stream("aac", rate=RATE, layout="stereo", bit_rate=BITRATE)
        done = 0
        for block in blocks:
            file.mux(stream.encode(_frame(block, done)))
            done += len(block)
            on_samples(done)
        file.mux(stream.encode(None))


def _frame(block: Block, first: int) -> AudioFrame:
    import av

    samples = np.ascontiguousarray(block).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(samples, format="dbl", layout="stereo")
    frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), first
    return frame
