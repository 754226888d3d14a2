"""The film's sound: every sample in its place, and as long as the picture."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_files import decoded, impulse, noise, recording, write_sound

from svi_story.cut.audio import (
    RAMP,
    Soundtrack,
    Track,
    audio_inputs,
    compose,
    ducked,
    limit,
    mix,
    samples_of,
    tracks_of,
)
from svi_story.cut.ffmpeg import ffmpeg_path
from svi_story.errors import RenderError
from svi_story.plan.keys import key_of
from svi_story.plan.model import Card, Cut, FilmPlan, Music, Recording, Shot, Size, Sound
from svi_story.storyboard.source import FolderResolver

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECOND = 48_000
RATES = [
    Fraction(15),
    Fraction(16),
    Fraction(24),
    Fraction(24000, 1001),
    Fraction(30000, 1001),
    Fraction(7, 3),
]
NOWHERE = Recording(Path("nowhere.wav"), "0" * 64, 3 * SECOND)


def sound(recorded: Recording = NOWHERE, **changes: object) -> Sound:
    return replace(Sound(recorded, 1.0, Fraction(0), Fraction(0)), **changes)  # type: ignore[arg-type]  # the test's


def film(*shots: Shot, music: Music | None = None, fps: Fraction = Fraction(15)) -> FilmPlan:
    cut = Cut("h264", 18, "medium", fps, True, False, 0, 0, Card("t", 30), None, music)
    about = (Path("b.yaml"), "t", Size(64, 64), Fraction(15), "animatic", "", "")
    return FilmPlan(*about, shots, cut, resolver=FolderResolver(Path()))


def shot(name: str, *voices: Sound, sounds: tuple[Sound, ...] = ()) -> Shot:
    return Shot(name, "", 0, 0, (), True, voices=voices, sounds=sounds)


def whole(soundtrack: Soundtrack) -> NDArray[np.float64]:
    return np.concatenate(list(compose(soundtrack)))


# -- the edit list


@given(fps=st.sampled_from(RATES), frames=st.integers(0, 10**7))
def test_frames_have_exact_samples(fps: Fraction, frames: int) -> None:
    sample = samples_of(frames / fps)
    assert abs(Fraction(sample) - frames / fps * SECOND) <= Fraction(1, 2)
    assert sample == (2 * frames * fps.denominator * SECOND + fps.numerator) // (2 * fps.numerator)
    assert samples_of((frames + 1) / fps) > sample


@given(
    fps=st.sampled_from(RATES),
    first=st.integers(0, 5000),
    wait=st.fractions(0, 100, max_denominator=1000),
    frames=st.integers(1, 5000),
    length=st.integers(1, 10**7),
)
def test_a_voice_starts_with_its_clip_and_ends_with_the_film(
    fps: Fraction, first: int, wait: Fraction, frames: int, length: int
) -> None:
    spoken = sound(replace(NOWHERE, samples=length), start=wait)
    made = tracks_of(film(shot("a", spoken), fps=fps), {"a": first}, frames)
    start = samples_of(first / fps + wait)
    assert made.samples == samples_of(frames / fps)
    if start >= made.samples:
        assert made.tracks == ()
    else:
        (track,) = made.tracks
        assert (track.start, track.stop) == (start, min(start + length, made.samples))


def test_music_first_then_voices_then_sounds() -> None:
    bed = Music(sound(volume=0.5, fade_in=Fraction(1), fade_out=Fraction(1, 3)), True, 0.3)
    plan = film(
        shot("a", sound(volume=0.1), sounds=(sound(volume=0.2),)), shot("b", sound(volume=0.3)), music=bed
    )
    made = tracks_of(plan, {"a": 30, "b": 60}, 150)
    assert [track.volume for track in made.tracks] == [0.5, 0.1, 0.3, 0.2]
    assert [track.start for track in made.tracks] == [0, 2 * SECOND, 4 * SECOND, 2 * SECOND]
    music = made.tracks[0]
    assert (music.stop, music.loop, music.fade_in, music.fade_out) == (10 * SECOND, True, SECOND, 16_000)
    # the voices touch (2 s to 5 s, 4 s to 7 s): the music steps back once
    assert music.gain == (
        (2 * SECOND - RAMP, 1),
        (2 * SECOND, 0.3),
        (7 * SECOND, 0.3),
        (7 * SECOND + RAMP, 1),
    )


def test_music_that_is_played_once_ends_by_itself_or_with_the_film() -> None:
    bed = Music(sound(), False, 1.0)
    assert tracks_of(film(music=bed), {}, 150).tracks == (Track(NOWHERE, 1.0, 0, 3 * SECOND, 0, 0),)
    assert tracks_of(film(music=bed), {}, 15).tracks == (Track(NOWHERE, 1.0, 0, SECOND, 0, 0),)


def test_clips_that_are_not_shown_yet_are_not_heard() -> None:
    plan = film(shot("a", sound()), shot("b", sound()))
    assert len(tracks_of(plan, {"a": 30}, 60).tracks) == 1
    assert tracks_of(plan, {}, 30).tracks == ()


spans = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=8)


@given(spans=spans, duck=st.floats(0, 0.99))
def test_music_steps_back_in_time_and_smoothly(spans: list[tuple[int, int]], duck: float) -> None:
    unit = RAMP // 4
    voices = [Track(NOWHERE, 1.0, a * unit, (a + n) * unit, 0, 0) for a, n in spans]
    places, gains = zip(*ducked(voices, duck), strict=True)
    assert list(places) == sorted(places)
    at = np.arange(-2 * RAMP, 250 * unit, unit // 8)
    gain = np.interp(at, places, gains)
    assert (np.abs(np.diff(gain)) <= (1 - duck) / RAMP * (unit // 8) + 1e-9).all()
    spoken = np.any([(at >= v.start) & (at <= v.stop) for v in voices], axis=0)
    near = np.any([(at > v.start - RAMP) & (at < v.stop + RAMP) for v in voices], axis=0)
    assert np.allclose(gain[spoken], duck)
    assert (gain[~near & (at < min(v.start for v in voices))] == 1).all()
    assert (gain[at >= max(v.stop for v in voices) + RAMP] == 1).all()


def test_a_voice_without_volume_is_no_voice() -> None:
    assert ducked([Track(NOWHERE, 0.0, 0, 100, 0, 0)], 0.3) == ()


def test_what_decides_the_sound_is_in_its_address() -> None:
    track = Track(NOWHERE, 1.0, 0, SECOND, 0, 0)
    base = Soundtrack(SECOND, (track,))
    changes = [
        replace(base, samples=2 * SECOND),
        *(
            replace(base, tracks=(replace(track, **change),))
            for change in (
                {"volume": 0.5},
                {"start": 1},
                {"stop": 2},
                {"fade_in": 3},
                {"fade_out": 3},
                {"loop": True},
                {"gain": ((0, 0.5),)},
                {"recording": replace(NOWHERE, sha256="1" * 64)},
            )
        ),
    ]
    keys = {key_of(audio_inputs(made)) for made in (base, *changes)}
    assert len(keys) == 1 + len(changes)
    moved = replace(base, tracks=(replace(track, recording=replace(NOWHERE, path=Path("else.wav"))),))
    assert audio_inputs(moved) == audio_inputs(base)


# -- composed, sample by sample


@pytest.fixture(scope="module")
def hall(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Recording, NDArray[np.float32]]]:
    """Recordings of several lengths with the samples they hold."""
    folder = tmp_path_factory.mktemp("hall")
    made = []
    for number, length in enumerate((1, 700, 48_000, 100_003)):
        samples = noise(length, number)
        made.append((recording(write_sound(folder / f"{number}.wav", samples)), samples))
    return made


def expected(track: Track, samples: NDArray[np.float32], total: int) -> NDArray[np.float64]:
    """One track in plain arithmetic."""
    n = np.arange(track.start, track.stop)
    k = n - track.start
    heard = samples[k % len(samples)].astype(np.float64) * track.volume
    gain = np.ones(len(k))
    if track.fade_in:
        gain *= np.minimum((k + 0.5) / track.fade_in, 1)
    if track.fade_out:
        gain *= np.minimum((track.samples - k - 0.5) / track.fade_out, 1)
    if track.gain:
        places, gains = zip(*track.gain, strict=True)
        gain *= np.interp(n, places, gains)
    out = np.zeros((total, 2))
    out[track.start : track.stop] = heard * gain[:, None]
    return out


@settings(max_examples=25)
@given(data=st.data())
def test_every_sample_is_in_its_place(
    hall: list[tuple[Recording, NDArray[np.float32]]], data: st.DataObject
) -> None:
    total = data.draw(st.integers(1, 150_000), label="total")
    tracks, due = [], np.zeros((total, 2))
    for _ in range(data.draw(st.integers(1, 4), label="tracks")):
        recorded, samples = data.draw(st.sampled_from(hall))
        start, loop = data.draw(st.integers(0, total - 1)), data.draw(st.booleans())
        stop = total if loop else min(start + len(samples), total)
        fade_in, fade_out = (data.draw(st.sampled_from((0, 1, 480, 60_000))) for _ in "io")
        gain = data.draw(st.sampled_from(((), ((100, 1.0), (9_000, 0.25), (90_000, 0.25), (99_000, 1.0)))))
        volume = data.draw(st.sampled_from((0.0, 0.8, 3.5)))
        track = Track(recorded, volume, start, stop, fade_in, fade_out, loop, gain)
        tracks.append(track)
        due += expected(track, samples, total)
    made = whole(Soundtrack(total, tuple(tracks)))
    assert made.shape == due.shape
    assert np.abs(made - due).max() < 1e-9


def test_silence_stays_silence_up_to_the_sample(hall: list[tuple[Recording, NDArray[np.float32]]]) -> None:
    recorded, samples = hall[1]
    made = whole(Soundtrack(200_000, (Track(recorded, 1.0, 95_999, 96_699, 0, 0),)))
    assert np.array_equal(made[95_999:96_699], samples)
    assert not made[:95_999].any()
    assert not made[96_699:].any()


def test_places_hold_after_minutes(hall: list[tuple[Recording, NDArray[np.float32]]]) -> None:
    recorded, samples = hall[1]
    start = 200 * SECOND + 31_337
    made = whole(Soundtrack(start + 1000, (Track(recorded, 1.0, start, start + 700, 0, 0),)))
    assert np.array_equal(made[start : start + 700], samples)
    assert np.count_nonzero(made) == np.count_nonzero(samples)


def test_the_seam_of_a_loop_is_exact_in_compressed_music(tmp_path: Path) -> None:
    for kind in ("mp3", "flac", "opus", "m4a"):
        path = write_sound(tmp_path / f"bed.{kind}", noise(60_000))
        recorded = recording(path)
        assert recorded.samples == 60_000
        made = whole(Soundtrack(200_000, (Track(recorded, 1.0, 0, 200_000, 0, 0, loop=True),)))
        assert np.array_equal(made[:60_000], made[60_000:120_000])
        assert np.array_equal(made[:60_000], made[120_000:180_000])
        assert np.array_equal(made[:20_000], made[180_000:])


@pytest.mark.parametrize("length", [1, 7, 999, 50_001])
def test_a_short_loop_is_as_exact_and_as_quick(tmp_path: Path, length: int) -> None:
    sound = noise(length)
    recorded = recording(write_sound(tmp_path / "bed.wav", sound))
    made = whole(Soundtrack(200_000, (Track(recorded, 1.0, 0, 200_000, 0, 0, loop=True),)))
    one = whole(Soundtrack(length, (Track(recorded, 1.0, 0, length, 0, 0),)))
    assert np.array_equal(made, one[np.arange(200_000) % length])


# -- limited


def test_what_is_not_too_loud_passes_untouched() -> None:
    for length in (1, 200, 1025, 100_000):
        samples = noise(length, height=1.0).astype(np.float64)
        out = np.concatenate(list(limit(samples[first:][:48_000] for first in range(0, length, 48_000))))
        assert np.array_equal(out, samples)


def test_peaks_are_turned_down_and_nothing_else() -> None:
    samples = noise(96_000, height=0.5).astype(np.float64)
    samples[50_000] = [2.5, -0.2]
    samples[60_000:60_200] = -1.5
    out = np.concatenate(list(limit([samples])))
    assert np.abs(out).max() <= 1.0
    assert out[50_000, 0] > 0.99
    assert (out[60_000:60_200] < -0.99).all()
    assert np.array_equal(out[:49_700], samples[:49_700])
    assert np.array_equal(out[65_000:], samples[65_000:])


# -- as a file


def by_ffmpeg(path: Path) -> NDArray[np.float32]:
    """What ffmpeg plays."""
    command = [ffmpeg_path(), "-v", "error", "-i", str(path), "-f", "f32le", "-ac", "2", "-"]
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    return np.frombuffer(done.stdout, "<f4").reshape(-1, 2)


@pytest.mark.parametrize("total", [3_200, 3_203, 48_000, 96_100, 204_850])
def test_the_file_is_as_long_as_the_film(tmp_path: Path, total: int) -> None:
    at = total // 2
    recorded = recording(write_sound(tmp_path / "tick.wav", impulse(1000, 0)))
    mix(Soundtrack(total, (Track(recorded, 1.0, at, min(at + 1000, total), 0, 0),)), tmp_path / "film.m4a")
    heard = by_ffmpeg(tmp_path / "film.m4a")
    assert len(heard) == total
    assert np.abs(heard[:, 0]).argmax() == at
    with av.open(str(tmp_path / "film.m4a")) as file:
        stream = file.streams.audio[0]
        assert (stream.codec.name, stream.rate, stream.channels) == ("aac", SECOND, 2)
        assert (stream.start_time, stream.duration, stream.time_base) == (0, total, Fraction(1, SECOND))
    raw = decoded(tmp_path / "film.m4a")  # PyAV leaves the last packet whole
    assert 0 <= len(raw) - total < 1024
    assert np.abs(raw[:, 0]).argmax() == at


def test_the_file_sounds_like_the_mix(tmp_path: Path) -> None:
    n = np.arange(100_000)
    tones = np.stack((0.5 * np.sin(n * 0.05), 0.3 * np.sin(n * 0.03)), axis=1)
    recorded = recording(write_sound(tmp_path / "tones.wav", tones))
    track = Track(recorded, 1.0, 0, 100_000, 4800, 4800)
    mix(Soundtrack(100_000, (track,)), tmp_path / "film.m4a")
    heard = by_ffmpeg(tmp_path / "film.m4a")
    due = expected(track, tones.astype(np.float32), 100_000)
    assert np.sqrt(np.mean((heard - due) ** 2)) < 0.015
    assert np.abs(heard[-40:]).max() < 0.02, "it ends in silence"


def test_same_inputs_same_bytes(tmp_path: Path, hall: list[tuple[Recording, NDArray[np.float32]]]) -> None:
    track = Track(hall[3][0], 0.7, 100, 90_000, 10, 10, loop=True)
    for name in ("a.m4a", "b.m4a"):
        mix(Soundtrack(100_000, (track,)), tmp_path / name)
    one, two = ((tmp_path / name).read_bytes() for name in ("a.m4a", "b.m4a"))
    assert one == two


def test_it_tells_how_far_it_is_and_what_was_too_loud(
    tmp_path: Path, hall: list[tuple[Recording, NDArray[np.float32]]]
) -> None:
    steps: list[tuple[int, int]] = []
    track = Track(recording(write_sound(tmp_path / "x.wav", impulse(100, 7))), 2.0, 0, 100, 0, 0)
    over = mix(Soundtrack(100_000, (track,)), tmp_path / "f.m4a", lambda *step: steps.append(step))
    assert over == 1
    assert steps[-1] == (100_000, 100_000)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.m4a", "x.wav"]


def test_a_film_without_sounds_is_silent(tmp_path: Path) -> None:
    mix(Soundtrack(10_000, ()), tmp_path / "film.m4a")
    heard = by_ffmpeg(tmp_path / "film.m4a")
    assert len(heard) == 10_000
    assert not heard.any()


@pytest.mark.parametrize("what", ["changed", "gone", "cut off"])
def test_a_recording_that_is_another_now_is_noticed(tmp_path: Path, what: str) -> None:
    path = write_sound(tmp_path / "x.wav", noise(1000))
    track = Track(recording(path), 1.0, 0, 1000, 0, 0)
    if what == "changed":
        write_sound(path, noise(1000, 1))
    elif what == "gone":
        path.unlink()
    else:
        os.truncate(path, 1000)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RenderError, match=r"x\.wav"):
        mix(Soundtrack(2000, (track,)), tmp_path / "film.m4a")
    assert sorted(tmp_path.iterdir()) == before


def test_a_recording_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "x.wav", noise(100_000))
    soundtrack = Soundtrack(100_000, (Track(recording(path), 1.0, 0, 100_000, 0, 0),))

    def spoil(done: int, _all: int) -> None:
        with path.open("r+b") as file:
            file.seek(700_000)
            file.write(b"\0" * 100)
        os.utime(path, ns=(done, done))

    with pytest.raises(RenderError, match="changed while"):
        mix(soundtrack, tmp_path / "film.m4a", spoil)
    assert [each.name for each in tmp_path.iterdir()] == ["x.wav"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="create that folder"):
        mix(Soundtrack(1000, ()), tmp_path / "nowhere" / "film.m4a")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from svi_story.cut.audio import mix; from svi_story.cut.audio import Soundtrack, Track\n"
        "from svi_story.errors import RenderError; from svi_story.plan.model import Recording\n"
        "recorded = Recording(Path('x.wav'), sys.argv[1], 400000)\n"
        "try: mix(Soundtrack(400000, (Track(recorded, 1.0, 0, 400000, 0, 0),)), Path('film.m4a'))\n"
        "except RenderError as error: print(error)"
    )
    path = write_sound(tmp_path / "x.wav", noise(400_000))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    done = subprocess.run([sys.executable, "-c", script, digest], capture_output=True, text=True, check=True)
    assert "film.m4a: cannot be written" in done.stdout
    assert [each.name for each in tmp_path.iterdir()] == ["x.wav"]


def test_memory_does_not_grow_with_the_film(tmp_path: Path) -> None:
    bed = recording(write_sound(tmp_path / "bed.flac", noise(60 * SECOND)))
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from svi_story.cut.audio import mix; from svi_story.cut.audio import Soundtrack, Track\n"
        "from svi_story.plan.model import Recording\n"
        "total, length = int(sys.argv[2]) * 48000, int(sys.argv[3])\n"
        "bed = Recording(Path('bed.flac'), sys.argv[1], length)\n"
        "mix(Soundtrack(total, (Track(bed, 1.0, 0, total, 0, 0, True),)), Path('film.m4a'))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )

    def peak(seconds: int) -> int:
        command = [sys.executable, "-c", script, bed.sha256, str(seconds), str(bed.samples)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(120) < peak(5) * 1.1
