"""Faults of a run's frames, with place, value and threshold, and remedies for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from svi_story.commands import suggest
from svi_story.enginespec import spec_of
from svi_story.review.analysis import flashes, frozen_blocks, lasting_steps, longest_run, seam_at
from svi_story.review.degradation import RATE
from svi_story.review.measures import LEVELS
from svi_story.review.thresholds import (
    ACTIVE,
    BLUR_FRAMES,
    DRIFT_FROM_START,
    DRIFT_OF_COLOUR,
    DRIFT_OF_LIGHT,
    FAST_MOTION,
    FLASH_LEVELS,
    FLICKER_FRAMES,
    FLICKER_SHARE,
    JUMP_DISTANCE,
    JUMP_RATIO,
    START_FRAMES,
    TABLE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.enginespec.sampling import Sampler
    from svi_story.plan.model import Segment
    from svi_story.review.analysis import Run, RunSegment, Seam
    from svi_story.review.degradation import What
    from svi_story.review.measures import Flags, Floats, MeasureSeries

TRAINED_FRAMES = 81
"""Frames of a pass that the model was trained on."""


@dataclass(frozen=True)
class Defect:
    """A defect of one clip, or of the join that leads into it."""

    kind: str
    """Its name in `thresholds.TABLE`."""
    frame: int
    """Where it starts: a frame of the run."""
    frames: int
    """How many frames have it."""
    value: float


def defects_of(run: Run) -> Iterator[tuple[int, Defect]]:
    """Everything wrong with a run's frames, with the number of the clip it is found in."""
    odd = odd_frames(run)
    for clip, frames in run.clips().items():
        defects = (
            *_flagged("black", run.black, run.series.mean[:, 0], frames),
            *_flagged("flat", run.flat, run.total_spread, frames),
            *_flagged("noise", run.noisy, run.excess_noise, frames),
            *_frozen(run, frames),
            *_disordered(run, frames),
            *_flickering(run, odd, frames),
            *_drifted(run, frames),
            *_unlike_anchor(run, frames),
            *_blurred(run, frames),
            *_grainy(run, frames),
            *_colour_stepped(run, odd, frames),
            *_jumped(run, odd, frames),
        )
        yield from ((clip, defect) for defect in defects)
    for segment in run.segments[1:]:
        seam = run.seams[segment.start]
        if seam is not None and not odd[max(segment.start - 1, 0) : segment.start + 1].any():
            yield from ((segment.clip, defect) for defect in broken_seam(run, segment, seam))


def odd_frames(run: Run) -> Flags:
    """Single frames that differ from both sides, which are alike; also a run's first and last frame."""
    series, residual = run.series, run.residual
    odd = np.zeros(len(series), bool)
    if len(series) > 2:
        usual = float(np.nanmedian(residual[1:]))
        change = series.mean_change
        odd[1:-1] = np.minimum(residual[1:-1], residual[2:]) > 2 * usual + FLASH_LEVELS
        odd[1:-1] &= series.change_over_two[2:] < np.minimum(change[1:-1], change[2:])
        colours = _colours(series)
        away, over = _from_neighbours(colours), np.linalg.norm(colours[2:] - colours[:-2], axis=1)
        odd[1:-1] |= (away > TABLE["flash"].value) & (away > 4 * np.median(away)) & (over < away / 2)
    for frame, step, inside in ((0, 1, slice(2, 7)), (len(series) - 1, len(series) - 1, slice(-6, -1))):
        if len(series) > 7 and not run.bad[inside].any():
            odd[frame] = _is_outer_step_odd(run, step, inside)
    return (odd | flashes(run.colour_steps)) & ~run.bad


def _is_outer_step_odd(run: Run, step: int, inside: slice) -> bool:
    """Whether a run's first or last step is far larger than those beside it."""
    change = run.residual[step] > 4 * np.median(run.residual[inside]) + 3 * FLASH_LEVELS
    steps = np.linalg.norm(np.diff(_colours(run.series), axis=0), axis=1)
    usual = np.median(steps[slice(1, 6) if step == 1 else slice(-6, -1)])
    return bool(change or steps[step - 1] > 4 * usual + 2 * TABLE["flash"].value)


def _colours(series: MeasureSeries) -> Floats:
    """n x 6: mean and spread of the colours."""
    return np.concatenate([series.mean, series.spread], axis=1)


def _from_neighbours(colours: Floats) -> Floats:
    """The distance of each inner frame from the average of its neighbours."""
    away: Floats = np.linalg.norm(colours[1:-1] - (colours[:-2] + colours[2:]) / 2, axis=1)
    return away


def _flagged(kind: str, flags: Flags, values: Floats, frames: slice) -> Iterator[Defect]:
    """One defect for all flagged frames of a clip."""
    found = np.flatnonzero(flags[frames]) + frames.start
    if len(found):
        yield Defect(kind, int(found[0]), len(found), float(np.median(values[found])))


def _frozen(run: Run, frames: slice) -> Iterator[Defect]:
    """The longest time in which nothing moves, or part of the picture does not, where it is too long."""
    series, total, most = run.series, frames.stop - frames.start, TABLE["frozen"].value
    first = max(frames.start, 1)  # a run's first frame has nothing before it
    good = ~run.bad[first : frames.stop]
    least = max(float(run.fps / 2), 2) if run.may_rest else most - 1
    start, steps = longest_run(series.identical[first : frames.stop] & good)
    if steps >= least:
        yield Defect("frozen", first + start - 1, steps + 1, float(steps + 1))
        return
    if run.may_rest or first >= frames.stop:
        return
    start, steps = frozen_blocks(series, slice(first, frames.stop), int(least))
    if steps:
        yield Defect("frozen", start - 1, steps + 1, float(steps + 1))
        return
    still = np.percentile(series.motion[first : frames.stop], 97, axis=1) < ACTIVE
    start, steps = longest_run(still & good)
    if steps >= max(TABLE["static"].value * total, 4):
        yield Defect("static", first + start - 1, steps + 1, steps / total)


def _disordered(run: Run, frames: slice) -> Iterator[Defect]:
    """Swapped neighbours, and frames that are repeated throughout."""
    for frame in run.swapped:
        if frames.start <= frame < frames.stop:
            yield Defect("order", frame, 2, 1.0)
    same = run.series.identical[frames] & ~run.bad[frames]
    is_stutter = same.mean() > TABLE["stutter"].value and longest_run(same)[1] < TABLE["frozen"].value - 1
    if not run.may_rest and is_stutter:
        yield Defect("stutter", frames.start + int(same.argmax()), int(same.sum()), float(same.mean()))


def _flickering(run: Run, odd: Flags, frames: slice) -> Iterator[Defect]:
    """Flicker, or a few single frames that do not belong."""
    found = np.flatnonzero(odd[frames]) + frames.start
    amount, start = flicker(run.series[frames], run.bad[frames])
    if amount > TABLE["flicker"].value:
        yield Defect("flicker", frames.start + start, frames.stop - frames.start - start, amount)
    elif len(found):
        change = run.series.mean_change
        largest = max(float(np.nanmax(change[frame : frame + 2])) / LEVELS for frame in found)
        many = len(found) > max(FLICKER_SHARE * (frames.stop - frames.start), 3)
        yield Defect("flicker" if many else "flash", int(found[0]), len(found), largest)


def flicker(series: MeasureSeries, bad: Flags) -> tuple[float, int]:
    """How far colours alternate from frame to frame where they do so most, and from which frame on.

    For every frame, the distance of mean and spread from the average of its neighbours; of these the median
    over FLICKER_FRAMES, so that a single flash does not count.
    """
    if len(series) < 6:
        return 0.0, 0
    away = _from_neighbours(_colours(series))
    away = np.where(bad[:-2] | bad[1:-1] | bad[2:], 0, away)
    medians = np.median(sliding_window_view(away, min(FLICKER_FRAMES, len(away))), axis=1)
    return float(medians.max()), int(medians.argmax())


def _drifted(run: Run, frames: slice) -> Iterator[Defect]:
    """A clip whose second half is far from the anchor's colours, and got there by drifting."""
    most = TABLE["drift"].value
    if not run.same_scene:
        return
    half = slice((frames.start + frames.stop) // 2, frames.stop)
    good = ~run.bad[half]
    if not good.any():
        return
    series = run.drift.total, run.drift_from_start, run.compensated_drift.colour, run.compensated_drift.total
    far, from_start, colour, total = (float(np.median(each[half][good])) for each in series)
    drifted = from_start > DRIFT_FROM_START and (colour > DRIFT_OF_COLOUR or total > DRIFT_OF_LIGHT)
    if far > most and (drifted or (not run.starts_chain and far > 3 * most)):
        beyond = (run.drift.total[frames] > most) & ~run.bad[frames]
        yield Defect("drift", frames.start + int(beyond.argmax()), int(beyond.sum()), far)


def _unlike_anchor(run: Run, frames: slice) -> Iterator[Defect]:
    """A chain that does not start with its anchor's colours."""
    good = np.flatnonzero(~run.bad[frames])[:3]
    if frames.start or not len(good) or not run.starts_with_anchor:
        return
    distance, most = float(np.median(run.drift.total[good])), TABLE["anchor"].value
    if distance > most:
        away = (run.drift.total[frames] > most) & ~run.bad[frames]
        yield Defect("anchor", int(good[0]), int(away.sum()), distance)


def _blurred(run: Run, frames: slice) -> Iterator[Defect]:
    """Consecutive frames that are softer than the run's start, or at its start than the anchor."""
    most = TABLE["blur"].value
    slow = ~run.bad[frames] & (run.series.mean_motion[frames] < FAST_MOTION)
    sharpness = run.series.sharpness[frames]
    lost = np.where(slow, run.start_sharpness - sharpness, 0)
    if frames.start == 0 and run.starts_with_anchor:
        # The first frame is the anchor after the VAE, which alone may cost a little
        lost = np.maximum(lost, np.where(slow, run.anchor.sharpness - sharpness - most / 2, 0))
    lasting = _lasting(lost, BLUR_FRAMES)
    soft = lost > most
    if lasting > most and _is_same_content(run, frames, soft):
        yield Defect("blur", frames.start + int(soft.argmax()), int(soft.sum()), lasting)


def _is_same_content(run: Run, frames: slice, soft: Flags) -> bool:
    """Whether soft frames show the same content that was sharper before, and not something else."""
    reach = int(run.fps / RATE) + 1
    places = (round(seconds * run.fps) - frames.start for seconds in run.softened)
    return any(soft[max(each - reach, 0) : max(each + reach, 0)].any() for each in places)


def _grainy(run: Run, frames: slice) -> Iterator[Defect]:
    """A clip with more grain than the run's start, even where the picture is quiet."""
    more = np.where(run.bad[frames], 0, run.series.noise_floor[frames] - run.start_noise_floor)
    lasting, most = _lasting(more, START_FRAMES), TABLE["grain"].value
    if lasting > most and not run.noisy[frames].any():
        grainy = more > most
        yield Defect("grain", frames.start + int(grainy.argmax()), int(grainy.sum()), lasting)


def _lasting(values: Floats, frames: int) -> float:
    """The largest median of so many consecutive frames."""
    return float(np.median(sliding_window_view(values, min(frames, len(values))), axis=1).max())


def _colour_stepped(run: Run, odd: Flags, frames: slice) -> Iterator[Defect]:
    """Frames inside a clip from which on the whole picture has other colours."""
    if flicker(run.series[frames], run.bad[frames])[0] > TABLE["flicker"].value:
        return
    for frame in lasting_steps(run.colour_steps, run.series):
        inside = frames.start < frame < frames.stop and frame not in run.seams
        if inside and not odd[frame - 1 : frame + 1].any():
            yield Defect("colour-step", frame, 1, float(run.colour_steps.excess[frame]))


def _jumped(run: Run, odd: Flags, frames: slice) -> Iterator[Defect]:
    """A frame inside a clip from which on another picture, or another part of it, is visible."""
    motion, change, most = run.series.mean_motion, run.series.mean_change, TABLE["other-picture"].value
    if frames.stop - frames.start < 3:
        return
    jumps = motion[frames] > JUMP_RATIO * np.median(motion[frames]) + JUMP_DISTANCE
    jumps |= change[frames] > 4 * np.nanmedian(change[frames]) + 15
    for frame in (np.flatnonzero(jumps) + frames.start).tolist():
        is_odd = odd[max(frame - 1, 0) : frame + 1].any()
        if frame in run.seams or is_odd or run.colour_steps.sudden[frame]:
            continue
        seam = seam_at(run.series, frame, run.bad)
        if seam is not None and (seam.other_picture > most or (seam.step or 0) > JUMP_RATIO):
            yield Defect("other-picture", frame, 1, max(seam.other_picture, most))
            return


def broken_seam(run: Run, segment: RunSegment, seam: Seam) -> Iterator[Defect]:
    """What is wrong with a join inside a chain."""
    frame, least, same = segment.start, TABLE["duplicate"].value, run.series.identical
    repeats = same[frame] and not same[max(frame - 1, 0) : frame + 2].all()
    if run.colour_steps.sudden[frame]:
        yield Defect("colour-step", frame, 1, float(run.colour_steps.excess[frame]))
    elif seam.other_picture > TABLE["other-picture"].value:
        yield Defect("other-picture", frame, 1, seam.other_picture)
    elif seam.step is not None and seam.step > TABLE["jump"].value:
        yield Defect("jump", frame, 1, seam.step)
    elif repeats or (seam.least is not None and seam.least < least and _keeps_direction(run.series, frame)):
        yield Defect("duplicate", frame, 1, seam.least or 0.0)
    elif seam.colour_step > TABLE["colour-step"].value:
        yield Defect("colour-step", frame, 1, seam.colour_step)


def _keeps_direction(series: MeasureSeries, frame: int) -> bool:
    """Whether the motion has the same direction before and after a step, unlike a turning camera."""
    before, after = series.flow[frame - 1], series.flow[min(frame + 1, len(series) - 1)]
    return float((before * after).sum()) > 0


def remedies(kind: str, segment: Segment, engine: str) -> tuple[str, ...]:
    """Remedies for a defect of a segment, best first; only those that fit the segment's settings."""
    if not spec_of(engine).is_model:
        return ("Render the clip again: frames that this engine did not render are replaced.",)
    return tuple(_REMEDIES[kind](segment))


def _against_broken_frames(segment: Segment) -> Iterator[str]:
    yield "Try another attention kernel (--attention; the authors require flash-attn), then --dtype float32."
    yield from _against_noise(segment)


def _against_noise(segment: Segment) -> Iterator[str]:
    yield (
        f"The LoRA pair of another variant renders noise: this is variant {segment.sampler.variant}; "
        f"{suggest('models check')} examines the files."
    )


def _against_stillness(segment: Segment) -> Iterator[str]:
    yield "Write a longer prompt: state and motion, “is doing X” rather than “starts to do X”."
    yield from _lower_distillation(segment.sampler, 0.5, "slows motion down; the authors use 0.5")
    if segment.size.width <= segment.size.height:
        yield "Portrait and square formats weaken motion: the model was trained on 832x480."
    yield "Another seed moves differently."


def _against_jumps_elsewhere(segment: Segment) -> Iterator[str]:
    yield "Short prompts make the picture snap back to the reference: describe state and motion at length."
    if min(segment.sampler.guidance.high, segment.sampler.guidance.low) <= 1:
        yield "Guidance 1 ignores the prompt: raise it above 1."
    yield from _lower_distillation(segment.sampler, 0.6, "snaps back; use 0.5")
    if segment.size.width <= segment.size.height:
        yield "In portrait format the prompt is followed less: the model was trained on 832x480."
    yield "Try another seed for this clip."


def _against_drift(segment: Segment) -> Iterator[str]:
    if segment.frames > TRAINED_FRAMES:
        yield (
            f"Passes of {segment.frames} frames shift colours: the model was trained on {TRAINED_FRAMES} "
            "(max_frames)."
        )
    if segment.size.width * segment.size.height > 832 * 480:
        yield f"{segment.size} is less consistent than 832x480."
    yield "Later clips of a chain drift most: start a new chain with a cut or a fade, and an anchor."
    yield "fp8 and GGUF weights degrade long films; so does a tiled VAE (use --vae whole)."
    yield "Harmless where the prompt asks for other light or another place."


def against_degradation(what: What, clip: str, is_first: bool, segment: Segment) -> tuple[str, ...]:  # noqa: FBT001
    """What to try where a run degrades from a clip on."""
    if not spec_of(segment.engine).is_model:
        return ("Render the clip again: frames that this engine did not render are replaced.",)
    texts = []
    if is_first:
        texts.append(
            f"It begins within {clip}, the first clip of its chain: a cut would not help. "
            f"Retake {clip} with another seed; shorter chains leave less time to degrade."
        )
    else:
        texts += [
            f"From {clip} on: retake {clip} with another seed, and what continues from it is rendered again.",
            "Or start a new chain there: “transition: cut” and a new “reference” leave the errors behind.",
        ]
    settings = [text for text in _against_drift(segment) if not text.startswith(("Later clips", "Harmless"))]
    if what == "colour":
        settings.append("Harmless where the story asks for other colours of the same things.")
    return (*texts, *settings)


def against_in_film(kind: str, period: float = 0) -> tuple[str, ...]:
    """Remedies for a defect of a film of unknown origin; `period`: distance of repeated frames."""
    if kind == "degradation":
        return (
            "Errors accumulate: make the clips from there on again, starting from a clean picture.",
            "A cut to a new reference picture shortly before it leaves the errors so far behind.",
        )
    if period:
        return (
            f"A frame is repeated every {period:.4g} frames, as at joins: drop one more frame at each join.",
        )
    if kind in ("duplicate", "jump"):
        return ("The join drops too few or too many frames.",)
    return ("Make this part of the film again.",)


def _against_flicker(segment: Segment) -> Iterator[str]:
    yield "Without flash attention artifacts appear: select it with --attention."
    yield "A tiled VAE leaves artifacts: use --vae whole."
    yield f"Try another seed than {segment.seed} for this clip."


def _against_broken_joins(segment: Segment) -> Iterator[str]:
    yield (
        "A jump or a repeated frame at every join is a trim that is off by one: variant "
        f"{segment.sampler.variant} drops {segment.overlap} here (1 for 2.0, 1 + 4 per motion latent for "
        "Pro). Imported frames may be trimmed differently."
    )
    yield "Try another seed for the later clip; a cut or a fade hides what remains."


def _against_changed_frames(_segment: Segment) -> Iterator[str]:
    yield "The model renders no such frames: they were changed afterwards. Render the clip again."
    yield "Imported frames must be at the board's rate, and in order."


def _against_other_anchor(segment: Segment) -> Iterator[str]:
    yield from _against_noise(segment)
    yield "fp8 and GGUF weights degrade colours; so does a tiled VAE (use --vae whole)."
    yield "Imported frames must start with the board's reference."


def _lower_distillation(sampler: Sampler, most: float, why: str) -> Iterator[str]:
    if sampler.distill is not None and sampler.distill.high > most:
        yield f"LightX2V at {sampler.distill.high:g} on the high-noise expert {why}."


_REMEDIES = {
    "degradation": _against_drift,
    "nan": _against_broken_frames,
    "black": _against_broken_frames,
    "flat": _against_broken_frames,
    "noise": _against_noise,
    "frozen": _against_stillness,
    "static": _against_stillness,
    "stutter": _against_changed_frames,
    "order": _against_changed_frames,
    "flash": _against_flicker,
    "flicker": _against_flicker,
    "drift": _against_drift,
    "anchor": _against_other_anchor,
    "blur": _against_drift,
    "grain": _against_drift,
    "jump": _against_broken_joins,
    "colour-step": _against_broken_joins,
    "other-picture": _against_jumps_elsewhere,
    "duplicate": _against_broken_joins,
}
