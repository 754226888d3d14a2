"""Timelines for editors: read by OpenTimelineIO itself, they show the film, frame by frame."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import opentimelineio as otio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from otio_frames import FOLDER, Wanted, by_clip, by_segment, film_of, job_of, shown_by

from svi_story.export.otio import as_bytes
from svi_story.export.transitions import EditedTrack, TrackItem, Transition, dissolve
from svi_story.plan.model import Card, Music, Recording, Sound

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.render.jobs import Job

NTSC = Fraction(24000, 1001)


def read(whole: Any) -> Any:
    """The timeline after its way through a file."""
    return otio.adapters.read_from_string(as_bytes(whole).decode(), "otio_json")


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """Films as plans allow them: fades that fit, dips of which half fits, black at both ends."""
    clips: list[Wanted] = []
    for index in range(draw(st.integers(1, 5))):
        runs = tuple(draw(st.lists(st.integers(4, 9), min_size=1, max_size=3)))
        before = sum(clips[-1].runs) - clips[-1].fade if index else 0
        fade, dip = 0, 0
        look = draw(st.sampled_from(["cut", "fade", "dip"])) if index else "cut"
        if look == "fade":
            fade = draw(st.integers(0, min(before, sum(runs))))
        elif look == "dip":
            dip = draw(st.integers(2, 2 * min(sum(clips[-1].runs), sum(runs)) - 1))
        clips.append(Wanted(runs, draw(st.sampled_from([0, 1, 5])), fade, dip))
    film = sum(sum(clip.runs) - clip.fade for clip in clips)
    black = draw(st.integers(0, film)), draw(st.integers(0, film))
    cards = draw(st.tuples(st.sampled_from([None, Card("Hi", 6)]), st.sampled_from([None, Card("Bye", 30)])))
    return job_of(clips, draw(st.sampled_from([Fraction(15), NTSC, Fraction(240)])), black, cards)


@settings(max_examples=80)
@given(jobs())
def test_an_editor_shows_the_film_frame_by_frame(job: Job) -> None:
    assert shown_by(read(by_segment(job))) == film_of(job)


@settings(max_examples=40)
@given(jobs())
def test_an_editor_shows_the_film_of_whole_clips_too(job: Job) -> None:
    assert shown_by(read(by_clip(job))) == film_of(job, whole_clips=True)


@settings(max_examples=40)
@given(jobs())
def test_transitions_never_meet_nor_use_frames_that_are_not_there(job: Job) -> None:
    """As OTIO itself sees it: each side's handles lie in its media, and expanding finds no overlap."""
    track = by_clip(job).video_tracks()[0]
    for index in reversed(range(len(track))):
        is_transition = isinstance(track[index], otio.schema.Transition)
        if is_transition and track[index].metadata["svi_story"]["look"] == "black":
            del track[index]
    for clip in track.find_clips():
        available, seen = clip.available_range(), clip.trimmed_range()
        into, out = track.handles_of_child(clip)
        assert seen.duration.value > 0
        assert seen.start_time - (into or at(0)) >= available.start_time
        assert seen.end_time_exclusive() + (out or at(0)) <= available.end_time_exclusive()
    otio.algorithms.track_with_expanded_transitions(track)


def at(frame: int) -> Any:
    return otio.opentime.RationalTime(frame, 15)


def test_a_timeline_reads_back_as_it_was() -> None:
    clips = [Wanted((9, 4), 1), Wanted((8,), fade=5), Wanted((4, 4), 5, dip=4)]
    job = job_of(clips, NTSC, (2, 3), (Card("Hi", 6), None))
    for whole in (by_segment(job), by_clip(job)):
        assert read(whole).is_equivalent_to(whole)
        assert read(whole).duration() == otio.opentime.RationalTime(job.plan.frames, float(NTSC))


def test_an_ntsc_rate_is_the_one_that_editors_know() -> None:
    whole = read(by_segment(job_of([Wanted((13,), 1)], NTSC)))
    clip = whole.video_tracks()[0][0]
    times = [
        clip.source_range.start_time,
        clip.source_range.duration,
        clip.media_reference.available_range.duration,
        whole.global_start_time,
    ]
    for time in times:
        assert time.rate == 24000 / 1001
        assert time.is_valid_timecode_rate(time.rate)
        assert otio.opentime.RationalTime.nearest_smpte_timecode_rate(time.rate) == time.rate
    assert whole.duration().to_timecode() == "00:00:00:13"
    assert whole.metadata["svi_story"]["fps"] == "24000/1001"


def test_what_a_segment_repeats_of_its_parent_is_trimmed() -> None:
    whole = read(by_segment(job_of([Wanted((8, 12), 5)])))
    first, second = whole.video_tracks()[0]
    assert (first.name, second.name) == ("clip-0 1/2", "clip-0 2/2")
    assert (first.source_range.start_time.value, first.source_range.duration.value) == (5, 8)
    assert (second.source_range.start_time.value, second.source_range.duration.value) == (5, 12)
    assert second.media_reference.available_range.duration.value == 17


def test_a_fade_over_several_segments_nests_its_clip() -> None:
    """A file of four frames cannot lend eight."""
    whole = read(by_segment(job_of([Wanted((9, 4), 1), Wanted((13,), fade=8)])))
    nest, fade, clip = whole.video_tracks()[0]
    assert isinstance(nest, otio.schema.Track)
    assert len(nest) == 2
    assert (fade.in_offset.value, fade.out_offset.value) == (4, 4)
    assert nest.source_range.duration.value == 9
    assert clip.source_range.start_time.value == 4
    assert nest.markers[0].name == "clip-0"


def test_black_is_a_transition_and_where_it_does_not_fit_a_marker() -> None:
    job = job_of([Wanted((9,)), Wanted((9,), dip=5)], black=(3, 4))
    track = read(by_segment(job)).video_tracks()[0]
    into, _, dip, _, out = track
    kinds = [(each.name, each.transition_type) for each in (into, dip, out)]
    assert kinds == [
        ("Fade from black", "SMPTE_Dissolve"),
        ("Dip to black", "Custom_Transition"),
        ("Fade to black", "SMPTE_Dissolve"),
    ]
    offsets = [(each.in_offset.value, each.out_offset.value) for each in (into, dip, out)]
    assert offsets == [(0, 3), (2, 3), (4, 0)]
    job = job_of([Wanted((9,)), Wanted((9,), dip=5)], black=(12, 0))
    (marker,) = read(by_segment(job)).video_tracks()[0].markers
    assert marker.name == "fade from black"
    assert marker.marked_range.duration.value == 12


def test_markers_and_metadata_tell_what_made_a_clip() -> None:
    hostile = 'A "cat" </script> \\u0000 <b>& \x1b[31m 猫 🐈 \u202eevil\ud800'
    whole = read(by_segment(job_of([Wanted((9, 4), 1, prompt=hostile, caption="Le café")], title="日\0本")))
    assert whole.name == "日本"
    first, second = whole.video_tracks()[0]
    (marker,) = first.markers
    assert marker.name == "clip-0"
    assert marker.comment == "Le café\n" + hostile.replace("\ud800", "?")
    assert marker.marked_range == first.source_range
    about = marker.metadata["svi_story"]
    assert about["prompt"] == hostile.replace("\ud800", "?")
    assert about["caption"] == "Le café"
    assert list(about["seeds"]) == [7, 8]
    assert second.metadata["svi_story"]["segments"][0]["seed"] == 8
    film = whole.metadata["svi_story"]
    assert film["engine"] == "animatic"
    assert [each["key"] for each in film["segments"]] == list(about["keys"])
    assert film["segments"][0]["inputs"]["clip"] == "clip-0"


def test_cards_without_files_say_what_is_on_them() -> None:
    whole = read(by_segment(job_of([Wanted((9,))], cards=(Card("Rain\non glass", 6), Card("End", 4)))))
    title, _, end = whole.video_tracks()[0]
    assert title.media_reference.parameters["text"] == "Rain\non glass"
    assert title.source_range.duration.value == 6
    assert end.media_reference.parameters["text"] == "End"


def test_references_are_relative_and_escaped() -> None:
    whole = by_clip(job_of([Wanted((9,))]))
    assert whole.video_tracks()[0][0].media_reference.target_url == "clip-0"
    from svi_story.export.otio import reference

    names = ["12:30.mov", "a b ü 猫.mov", "100% #1?.mov", "../up/x;y.mov"]
    for name in names:
        url = reference(FOLDER / name, FOLDER, None).target_url
        assert otio.url_utils.filepath_from_url(url) == name
        assert ":" not in url


def sound(name: str, samples: int, start: Fraction = Fraction(0)) -> Sound:
    return Sound(Recording(FOLDER / name, "a" * 64, samples), 0.5, Fraction(0), Fraction(1, 2), start)


def test_recordings_lie_where_they_are_heard() -> None:
    """Each from its clip's first frame on, a fade's too; what overlaps takes another track."""
    clips = [
        Wanted((15,), voices=(sound("long.wav", 60_000),)),
        Wanted((15,), fade=5, voices=(sound("later.wav", 1000, Fraction(1, 3)),)),
        Wanted((15,), voices=(sound("over the end.wav", 500_000),)),
    ]
    music = Music(sound("bed.mp3", 50_000), loop=True, duck=0.3)
    whole = read(by_segment(job_of(clips, music=music, cards=(Card("Hi", 15), None))))
    film = 55 * 3200
    tracks = {track.name: track for track in whole.audio_tracks()}
    assert list(tracks) == ["Music", "Voices", "Voices 2"]
    placed = {
        clip.name: (clip.range_in_parent().start_time.value, clip.source_range.duration.value)
        for name in ("Voices", "Voices 2")
        for clip in tracks[name].find_clips()
    }
    assert placed == {
        "long.wav": (48_000, 60_000),
        "later.wav": (25 * 3200 + 16_000, 1000),
        "over the end.wav": (40 * 3200, film - 40 * 3200),
    }
    assert [clip.source_range.duration.value for clip in tracks["Music"]] == [50_000] * 3 + [film - 150_000]
    clip = tracks["Music"][0]
    assert clip.media_reference.target_url == "bed.mp3"
    assert clip.media_reference.available_range.duration == otio.opentime.RationalTime(50_000, 48_000)
    about = clip.metadata["svi_story"]
    assert (about["volume"], about["duck"], about["loop"], about["fade_out_seconds"]) == (0.5, 0.3, True, 0.5)
    assert whole.duration().to_seconds() == pytest.approx(55 / 15)


def test_a_tiny_recording_does_not_make_a_huge_file() -> None:
    music = Music(sound("click.wav", 1), loop=True, duck=1.0)
    whole = by_segment(job_of([Wanted((15,))], music=music))
    (track,) = whole.audio_tracks()
    assert len(track) == 1000
    assert track[0].metadata["svi_story"]["times"] == 48_000
    silent = Music(sound("empty.wav", 0), loop=True, duck=1.0)
    assert not by_segment(job_of([Wanted((15,))], music=silent)).audio_tracks()


def test_a_transition_that_meets_another_is_not_put() -> None:
    edit = EditedTrack([TrackItem((8,)), TrackItem((8,))])
    assert edit.set(1, dissolve(5))
    assert not edit.set(1, dissolve(1))
    assert not edit.set(0, Transition("black", 0, 4))
    assert edit.set(0, Transition("black", 0, 3))
    assert edit.frames == 11
    assert edit.starts == (0, 3)


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    whole = by_segment(job_of([Wanted((9,))]))
    (tmp_path / "a.otio").write_bytes(as_bytes(whole))
    assert json.loads((tmp_path / "a.otio").read_text())["OTIO_SCHEMA"] == "Timeline.1"
    assert otio.adapters.read_from_file(str(tmp_path / "a.otio")).is_equivalent_to(whole)
