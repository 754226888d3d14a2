"""What is wrong with a run's frames, with place, number and threshold, and what to try against it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from svi_story.enginespec import spec_of
from svi_story.review.analysis import changes, flashes, held_blocks, seam_at
from svi_story.review.measures import LEVELS
from svi_story.review.thresholds import (
    ACTIVE,
    AWAY,
    BLACK,
    BLUR,
    DARKER,
    DRIFT,
    FAST,
    FLAT,
    FLICKER,
    FROZEN,
    GRAIN,
    LEAP,
    LEAP_FAR,
    MOVED,
    NOISE,
    ODD,
    ODD_LEVELS,
    ORDER,
    OTHER,
    POP,
    REPEAT,
    SOFT_FRAMES,
    START,
    STATIC,
    STEP,
    STUTTER,
    TURNED,
    WINDOW,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.enginespec.sampling import Sampler
    from svi_story.plan.model import Segment
    from svi_story.review.analysis import Part, Run, Seam
    from svi_story.review.measures import Flags, Floats, Track
    from svi_story.review.thresholds import Limit


MANY = 0.15
"""Share of a clip's frames: more single odd ones than that are flicker."""


@dataclass(frozen=True)
class Fault:
    """One fault of one clip, or of the join that leads into it."""

    kind: str
    """Its name in `limits.TABLE`, or `nan`."""
    frame: int
    """Where it starts: a frame of the run."""
    frames: int
    """How many frames have it."""
    value: float
    limit: Limit


def faults_of(run: Run) -> Iterator[tuple[int, Fault]]:
    """Everything wrong with a run's frames, with the number of the clip it is found in."""
    odd = odd_frames(run)
    for shot, frames in run.clips().items():
        faults = (
            *_flagged("black", run.black, run.track.mean[:, 0], frames, BLACK),
            *_flagged("flat", run.flat, run.total_spread, frames, FLAT),
            *_flagged("noise", run.noisy, run.over_noise, frames, NOISE),
            *_still(run, frames),
            *_disordered(run, frames),
            *_restless(run, odd, frames),
            *_drifted(run, frames),
            *_unlike(run, frames),
            *_blurred(run, frames),
            *_grainy(run, frames),
            *_stepped(run, odd, frames),
            *_torn(run, odd, frames),
        )
        yield from ((shot, fault) for fault in faults)
    for part in run.parts[1:]:
        seam = run.seams[part.start]
        if seam is not None and not odd[max(part.start - 1, 0) : part.start + 1].any():
            yield from ((part.shot, fault) for fault in _seam_faults(run, part, seam))


def odd_frames(run: Run) -> Flags:
    """Frames that differ from both sides, which are like each other; a run's ends too."""
    track, rest = run.track, run.rest
    odd = np.zeros(len(track), bool)
    if len(track) > 2:
        usual = float(np.nanmedian(rest[1:]))
        odd[1:-1] = np.minimum(rest[1:-1], rest[2:]) > 2 * usual + ODD_LEVELS
        odd[1:-1] &= track.skip[2:] < np.minimum(track.changing[1:-1], track.changing[2:])
        odd[1:-1] |= _lone(_colours(track))
    for place, step, inside in ((0, 1, slice(2, 7)), (len(track) - 1, len(track) - 1, slice(-6, -1))):
        if len(track) > 7 and not run.bad[inside].any():
            odd[place] = _leaves(run, step, inside)
    return (odd | flashes(run.steps)) & ~run.bad


def _colours(track: Track) -> Floats:
    """n x 6: what is looked at for colours that come and go."""
    return np.concatenate([track.mean, track.spread], axis=1)


def _away(series: Floats) -> Floats:
    """How far each inner frame is from what lies half way between its neighbours."""
    away: Floats = np.linalg.norm(series[1:-1] - (series[:-2] + series[2:]) / 2, axis=1)
    return away


def _lone(series: Floats) -> Flags:
    """Inner frames whose colours leave and come back at once."""
    away, over = _away(series), np.linalg.norm(series[2:] - series[:-2], axis=1)
    flags: Flags = (away > ODD.value) & (away > 4 * np.median(away)) & (over < away / 2)
    return flags


def _leaves(run: Run, step: int, inside: slice) -> bool:
    """Whether a run's first or last step is far larger than those beside it."""
    change = run.rest[step] > 4 * np.median(run.rest[inside]) + 3 * ODD_LEVELS
    steps = np.linalg.norm(np.diff(_colours(run.track), axis=0), axis=1)
    usual = np.median(steps[slice(1, 6) if step == 1 else slice(-6, -1)])
    return bool(change or steps[step - 1] > 4 * usual + 2 * ODD.value)


def _flagged(kind: str, flags: Flags, values: Floats, frames: slice, limit: Limit) -> Iterator[Fault]:
    """One fault for all flagged frames of a clip."""
    found = np.flatnonzero(flags[frames]) + frames.start
    if len(found):
        yield Fault(kind, int(found[0]), len(found), float(np.median(values[found])), limit)


def _still(run: Run, frames: slice) -> Iterator[Fault]:
    """The longest time that nothing moves, or part of the picture does not, where it is too long."""
    track, total = run.track, frames.stop - frames.start
    first = max(frames.start, 1)  # a run's first frame has nothing before it
    sound = ~run.bad[first : frames.stop]
    least = max(float(run.fps / 2), 2) if run.rests else FROZEN.value - 1
    start, frozen = longest(track.same[first : frames.stop] & sound)
    if frozen >= least:
        yield Fault("frozen", first + start - 1, frozen + 1, float(frozen + 1), FROZEN)
        return
    if run.rests or first >= frames.stop:
        return
    held, count = held_blocks(track, slice(first, frames.stop), int(least))
    if count:
        yield Fault("frozen", held - 1, count + 1, float(count + 1), FROZEN)
    still = np.percentile(track.motion[first : frames.stop], 97, axis=1) < ACTIVE
    start, resting = longest(still & sound)
    if resting >= max(STATIC.value * total, 4):
        yield Fault("static", first + start - 1, resting + 1, resting / total, STATIC)


def _disordered(run: Run, frames: slice) -> Iterator[Fault]:
    """Neighbours that changed places, and frames that are shown twice all along."""
    for place in run.swapped:
        if frames.start <= place < frames.stop:
            yield Fault("order", place, 2, 1.0, ORDER)
    same = run.track.same[frames] & ~run.bad[frames]
    if not run.rests and same.mean() > STUTTER.value and longest(same)[1] < FROZEN.value - 1:
        first = frames.start + int(same.argmax())
        yield Fault("stutter", first, int(same.sum()), float(same.mean()), STUTTER)


def longest(flags: Flags) -> tuple[int, int]:
    """Where the longest run of set flags starts, and how long it is."""
    best = start = 0, 0
    place = 0
    for flag, group in groupby(flags.tolist()):
        length = len(list(group))
        start = (place, length)
        best = start if flag and length > best[1] else best
        place += length
    return best


def _restless(run: Run, odd: Flags, frames: slice) -> Iterator[Fault]:
    """Flicker, or a few single frames that do not belong."""
    found = np.flatnonzero(odd[frames]) + frames.start
    amount, place = flicker(run.track[frames], run.bad[frames])
    if amount > FLICKER.value:
        yield Fault("flicker", frames.start + place, frames.stop - frames.start - place, amount, FLICKER)
    elif len(found):
        far = max(_step(run.track, int(frame)) for frame in found)
        many = len(found) > max(MANY * (frames.stop - frames.start), 3)
        kind, limit = ("flicker", FLICKER) if many else ("flash", ODD)
        yield Fault(kind, int(found[0]), len(found), far, limit)


def _step(track: Track, frame: int) -> float:
    """How far a frame's pixels are from a neighbour's, in CIELAB units."""
    return float(np.nanmax(track.changing[frame : frame + 2])) / LEVELS


def flicker(track: Track, bad: Flags) -> tuple[float, int]:
    """How far colours go back and forth from frame to frame, where they do so most; and from which frame on.

    For every frame: how far mean and spread are from what lies half way between its neighbours; of these the
    median over WINDOW frames, so that a single flash is none.
    """
    if len(track) < 6:
        return 0.0, 0
    away = _away(_colours(track))
    away = np.where(bad[:-2] | bad[1:-1] | bad[2:], 0, away)
    window = min(WINDOW, len(away))
    medians = np.median(sliding_window_view(away, window), axis=1)
    return float(medians.max()), int(medians.argmax())


def _drifted(run: Run, frames: slice) -> Iterator[Fault]:
    """A clip whose second half is far from the anchor's colours, and has come there on the way."""
    half = slice((frames.start + frames.stop) // 2, frames.stop)
    sound = ~run.bad[half]
    if not sound.any():
        return
    series = run.drift.total, run.moved, run.turned.colour, run.turned.total
    far, moved, colour, total = (float(np.median(each[half][sound])) for each in series)
    came = moved > MOVED and (colour > TURNED or total > DARKER)
    if far > DRIFT.value and (came or (not run.starts and far > 3 * DRIFT.value)):
        beyond = (run.drift.total[frames] > DRIFT.value) & ~run.bad[frames]
        yield Fault("drift", frames.start + int(beyond.argmax()), int(beyond.sum()), far, DRIFT)


def _unlike(run: Run, frames: slice) -> Iterator[Fault]:
    """A chain that does not start with its anchor's colours."""
    sound = np.flatnonzero(~run.bad[frames])[:3]
    if frames.start or not len(sound) or not run.judged:
        return
    far = float(np.median(run.drift.total[sound]))
    if far > AWAY.value:
        away = (run.drift.total[frames] > AWAY.value) & ~run.bad[frames]
        yield Fault("anchor", int(sound[0]), int(away.sum()), far, AWAY)


def _blurred(run: Run, frames: slice) -> Iterator[Fault]:
    """A clip of which some frames in a row are softer than the run's beginning; that, than the anchor."""
    calm = ~run.bad[frames] & (run.track.moving[frames] < FAST)
    sharp = run.track.sharpness[frames]
    lost = np.where(calm, run.start_sharpness - sharp, 0)
    if frames.start == 0 and run.judged:
        # The first frame is the anchor, decoded: that alone may cost a little
        lost = np.maximum(lost, np.where(calm, run.anchor.sharpness - sharp - BLUR.value / 2, 0))
    most = _lasting(lost, SOFT_FRAMES)
    if most > BLUR.value:
        soft = lost > BLUR.value
        yield Fault("blur", frames.start + int(soft.argmax()), int(soft.sum()), most, BLUR)


def _grainy(run: Run, frames: slice) -> Iterator[Fault]:
    """A clip that has more grain than the run's beginning, even where the picture is quiet."""
    more = np.where(run.bad[frames], 0, run.track.floor[frames] - run.start_floor)
    most = _lasting(more, START)
    if most > GRAIN.value and not run.noisy[frames].any():
        grainy = more > GRAIN.value
        yield Fault("grain", frames.start + int(grainy.argmax()), int(grainy.sum()), most, GRAIN)


def _lasting(values: Floats, frames: int) -> float:
    """The most that the median of so many frames in a row comes to."""
    return float(np.median(sliding_window_view(values, min(frames, len(values))), axis=1).max())


def _stepped(run: Run, odd: Flags, frames: slice) -> Iterator[Fault]:
    """Frames inside a clip from which on all of the picture has other colours."""
    if flicker(run.track[frames], run.bad[frames])[0] > FLICKER.value:
        return
    for place in changes(run.steps, run.track):
        inside = frames.start < place < frames.stop and place not in run.seams
        if inside and not odd[place - 1 : place + 1].any():
            yield Fault("colour-step", place, 1, float(run.steps.beyond[place]), POP)


def _torn(run: Run, odd: Flags, frames: slice) -> Iterator[Fault]:
    """A frame inside a clip from which on another picture, or another part of it, is seen."""
    moving, changing = run.track.moving, run.track.changing
    if frames.stop - frames.start < 3:
        return
    leaps = moving[frames] > LEAP * np.median(moving[frames]) + LEAP_FAR
    leaps |= changing[frames] > 4 * np.nanmedian(changing[frames]) + 15
    for place in (np.flatnonzero(leaps) + frames.start).tolist():
        if place in run.seams or odd[max(place - 1, 0) : place + 1].any() or run.steps.sudden[place]:
            continue
        seam = seam_at(run.track, place, run.bad)
        if seam is not None and (seam.other > OTHER.value or (seam.step or 0) > LEAP):
            yield Fault("other-picture", place, 1, max(seam.other, OTHER.value), OTHER)
            return


def _goes_on(track: Track, frame: int) -> bool:
    """Whether the motion goes the same way before and after a step: a camera that turns back rests too."""
    beside = track.flow[frame - 1], track.flow[min(frame + 1, len(track) - 1)]
    return float((beside[0] * beside[1]).sum()) > 0


def _seam_faults(run: Run, part: Part, seam: Seam) -> Iterator[Fault]:
    again = run.track.same[part.start] and not run.track.same[max(part.start - 1, 0) : part.start + 2].all()
    if run.steps.sudden[part.start]:
        yield Fault("colour-step", part.start, 1, float(run.steps.beyond[part.start]), POP)
    elif seam.other > OTHER.value:
        yield Fault("other-picture", part.start, 1, seam.other, OTHER)
    elif seam.step is not None and seam.step > STEP.value:
        yield Fault("jump", part.start, 1, seam.step, STEP)
    elif again or (seam.least is not None and seam.least < REPEAT.value and _goes_on(run.track, part.start)):
        yield Fault("duplicate", part.start, 1, seam.least or 0.0, REPEAT)
    elif seam.pop > POP.value:
        yield Fault("colour-step", part.start, 1, seam.pop, POP)


TITLES = {
    "nan": "Numbers that are none in the latents",
    "black": "Black frames",
    "flat": "Frames of one colour",
    "noise": "Noise",
    "frozen": "The picture freezes",
    "static": "A still clip",
    "stutter": "Frames are shown twice all along",
    "order": "Two frames are swapped",
    "flash": "Frames that do not belong",
    "flicker": "Flicker",
    "drift": "Colours drift from the anchor",
    "anchor": "The chain does not start as its anchor",
    "blur": "The picture is soft",
    "grain": "The picture gets grainier",
    "jump": "The motion jumps at a join",
    "colour-step": "Colours step",
    "other-picture": "The picture leaps",
    "duplicate": "A frame is shown twice at a join",
}
"""By the names of `limits.TABLE`, and `nan`."""

TRAINED = 81
"""Frames of a pass that the model was trained on."""


def cures(kind: str, segment: Segment, engine: str) -> tuple[str, ...]:
    """What to try for a fault in a segment, best first."""
    if not spec_of(engine).is_model:
        return ("Make the clip again: frames that did not come out of this engine are replaced.",)
    return tuple(_CURES[kind](segment))


def _hints_broken(segment: Segment) -> Iterator[str]:
    yield "Try another attention kernel (--attention; the authors demand flash-attn), then --dtype float32."
    yield from _hints_lora_pair(segment)


def _hints_lora_pair(segment: Segment) -> Iterator[str]:
    yield (
        f"The wrong LoRA pair for a variant gives garbage: this is variant {segment.sampler.variant}; "
        "svi-story models check looks at the files."
    )


def _hints_still(segment: Segment) -> Iterator[str]:
    yield "Write a longer prompt: state and motion, “is doing X” rather than “starts to do X”."
    yield from _hints_distillation(segment.sampler, 0.5, "slows motion down; the authors use 0.5")
    if segment.size.width <= segment.size.height:
        yield "Portrait and square weaken motion: the model was trained on 832x480."
    yield "Another seed moves otherwise."


def _hints_leap(segment: Segment) -> Iterator[str]:
    yield "Snapping back to the reference pose comes from short prompts: say state and motion at length."
    if min(segment.sampler.guidance.high, segment.sampler.guidance.low) <= 1:
        yield "Guidance 1 ignores the prompt: raise it above 1."
    yield from _hints_distillation(segment.sampler, 0.6, "snaps back; use 0.5")
    if segment.size.width <= segment.size.height:
        yield "Portrait weakens following the prompt: the model was trained on 832x480."
    yield "Another seed for this clip."


def _hints_drift(segment: Segment) -> Iterator[str]:
    if segment.frames > TRAINED:
        yield f"Passes of {segment.frames} frames shift colours: the model knows {TRAINED} (max_frames)."
    if segment.size.width * segment.size.height > 832 * 480:
        yield f"{segment.size} is less consistent than 832x480."
    yield "Later clips of a chain drift most: start a new chain with a cut or a fade, and an anchor."
    yield "fp8 and GGUF weights hurt long films; so does a VAE in tiles (--vae whole)."
    yield "Harmless where the prompt asks for other light or another place."


def _hints_flicker(segment: Segment) -> Iterator[str]:
    yield "Without flash attention artifacts appear: name it with --attention."
    yield "A VAE in tiles leaves artifacts: --vae whole."
    yield f"Another seed than {segment.seed} for this clip."


def _hints_join(segment: Segment) -> Iterator[str]:
    drop = segment.overlap
    yield (
        f"Flicker at joins is a trim off by one: variant {segment.sampler.variant} drops {drop} here"
        " (1 for 2.0, 1 + 4 per motion latent for Pro). Frames from elsewhere may be trimmed otherwise."
    )
    yield "Another seed for the later clip; a cut or a fade hides what stays."


def _hints_foreign_frames(_segment: Segment) -> Iterator[str]:
    yield "The model makes no such frames: they were changed on the way. Make the clip again."
    yield "Frames from elsewhere have to be at the board's rate, and in order."


def _hints_anchor(segment: Segment) -> Iterator[str]:
    yield from _hints_lora_pair(segment)
    yield "fp8 and GGUF weights hurt colours; so does a VAE in tiles (--vae whole)."
    yield "Frames from elsewhere have to start with the board's reference."


def _hints_distillation(sampler: Sampler, most: float, why: str) -> Iterator[str]:
    if sampler.distill is not None and sampler.distill.high > most:
        yield f"LightX2V at {sampler.distill.high:g} on the high-noise expert {why}."


_CURES = {
    "nan": _hints_broken,
    "black": _hints_broken,
    "flat": _hints_broken,
    "noise": _hints_lora_pair,
    "frozen": _hints_still,
    "static": _hints_still,
    "stutter": _hints_foreign_frames,
    "order": _hints_foreign_frames,
    "flash": _hints_flicker,
    "flicker": _hints_flicker,
    "drift": _hints_drift,
    "anchor": _hints_anchor,
    "blur": _hints_drift,
    "grain": _hints_drift,
    "jump": _hints_join,
    "colour-step": _hints_join,
    "other-picture": _hints_leap,
    "duplicate": _hints_join,
}
