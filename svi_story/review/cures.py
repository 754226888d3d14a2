"""What each fault is called, how to read it, and what helps, as far as the field knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.enginespec.sampling import Sampler
    from svi_story.plan.model import Segment

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


def _broken(segment: Segment) -> Iterator[str]:
    yield "Try another attention kernel (--attention; the authors demand flash-attn), then --dtype float32."
    yield from _mixed(segment)


def _mixed(segment: Segment) -> Iterator[str]:
    yield (
        f"The wrong LoRA pair for a variant gives garbage: this is variant {segment.sampler.variant}; "
        "svi-story models check looks at the files."
    )


def _still(segment: Segment) -> Iterator[str]:
    yield "Write a longer prompt: state and motion, “is doing X” rather than “starts to do X”."
    yield from _distilled(segment.sampler, 0.5, "slows motion down; the authors use 0.5")
    if segment.size.width <= segment.size.height:
        yield "Portrait and square weaken motion: the model was trained on 832x480."
    yield "Another seed moves otherwise."


def _leap(segment: Segment) -> Iterator[str]:
    yield "Snapping back to the reference pose comes from short prompts: say state and motion at length."
    if min(segment.sampler.guidance.high, segment.sampler.guidance.low) <= 1:
        yield "Guidance 1 ignores the prompt: raise it above 1."
    yield from _distilled(segment.sampler, 0.6, "snaps back; use 0.5")
    if segment.size.width <= segment.size.height:
        yield "Portrait weakens following the prompt: the model was trained on 832x480."
    yield "Another seed for this clip."


def _drift(segment: Segment) -> Iterator[str]:
    if segment.frames > TRAINED:
        yield f"Passes of {segment.frames} frames shift colours: the model knows {TRAINED} (max_frames)."
    if segment.size.width * segment.size.height > 832 * 480:
        yield f"{segment.size} is less consistent than 832x480."
    yield "Later clips of a chain drift most: start a new chain with a cut or a fade, and an anchor."
    yield "fp8 and GGUF weights hurt long films; so does a VAE in tiles (--vae whole)."
    yield "Harmless where the prompt asks for other light or another place."


def _flicker(segment: Segment) -> Iterator[str]:
    yield "Without flash attention artifacts appear: name it with --attention."
    yield "A VAE in tiles leaves artifacts: --vae whole."
    yield f"Another seed than {segment.seed} for this clip."


def _join(segment: Segment) -> Iterator[str]:
    drop = segment.overlap
    yield (
        f"Flicker at joins is a trim off by one: variant {segment.sampler.variant} drops {drop} here"
        " (1 for 2.0, 1 + 4 per motion latent for Pro). Frames from elsewhere may be trimmed otherwise."
    )
    yield "Another seed for the later clip; a cut or a fade hides what stays."


def _elsewhere(_segment: Segment) -> Iterator[str]:
    yield "The model makes no such frames: they were changed on the way. Make the clip again."
    yield "Frames from elsewhere have to be at the board's rate, and in order."


def _unlike(segment: Segment) -> Iterator[str]:
    yield from _mixed(segment)
    yield "fp8 and GGUF weights hurt colours; so does a VAE in tiles (--vae whole)."
    yield "Frames from elsewhere have to start with the board's reference."


def _distilled(sampler: Sampler, most: float, why: str) -> Iterator[str]:
    if sampler.distill is not None and sampler.distill.high > most:
        yield f"LightX2V at {sampler.distill.high:g} on the high-noise expert {why}."


_CURES = {
    "nan": _broken,
    "black": _broken,
    "flat": _broken,
    "noise": _mixed,
    "frozen": _still,
    "static": _still,
    "stutter": _elsewhere,
    "order": _elsewhere,
    "flash": _flicker,
    "flicker": _flicker,
    "drift": _drift,
    "anchor": _unlike,
    "blur": _drift,
    "grain": _drift,
    "jump": _join,
    "colour-step": _join,
    "other-picture": _leap,
    "duplicate": _join,
}
