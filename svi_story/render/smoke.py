"""Renders two short clips with the real engine and checks them: the installation test of the SVI authors.

In their test a person leaves the picture; the installation is correct if they return with a similar
appearance. The user judges whether it is the same person. Checked here: everything runs and all numbers are
finite, the LoRAs change every layer that they should, the conditioning is the anchor's, the experts react to
it, and the second clip is closer to the anchor than one rendered with an empty picture as its anchor.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from svi_story.cache.outputs import Outputs
from svi_story.commands import suggest
from svi_story.engines.base import Carry
from svi_story.enginespec import DEFAULT
from svi_story.errors import InputError, Problem
from svi_story.files import disk, make_folder
from svi_story.render.doctor import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from svi_story.engines import Digest
    from svi_story.engines.base import Frame, Latents
    from svi_story.engines.svi.engine import Svi
    from svi_story.engines.svi.weights.locate import ModelFolders, Weights
    from svi_story.enginespec.sampling import Variant
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import Segment

    Frames = NDArray[np.uint8]
    """[frames, height, width, 3], RGB."""
    Print = Callable[[str], None]

PROMPTS = (
    "The camera is panning slowly away to the right until the subject has left the frame.",
    "The camera is panning back to the left, and the same subject is in the middle of the frame again.",
)
FULL_WIDTH = 5120
"""The width of the 14B experts; pictures of smaller ones mean nothing."""
NOT_JUDGED = (
    "not judged: experts smaller than the 14B ones show only that everything runs and that all numbers are "
    "finite, not that a subject returns"
)
PICTURE = "doctor-smoke{}.png"
"""With a number if another file has this name already."""


@dataclass(frozen=True)
class SmokeTest:
    """The settings of the test."""

    models: ModelFolders
    variant: Variant
    size: str
    frames: int
    steps: int
    dtype: str
    reference: Path | None
    """The anchor; None: a template's picture."""
    folder: Path
    """Where the pictures go."""
    outputs: Outputs = field(default_factory=Outputs)
    precision: str = "bf16"
    """How the experts are held in memory."""


@dataclass(frozen=True)
class RenderedClip:
    """A clip that was rendered."""

    latents: Latents
    frames: Frames

    def carry(self) -> Carry:
        """What the next clip continues from."""
        return Carry(DEFAULT, self.latents, list(self.frames[-1:]))


class NoCheckpoint:
    """A checkpoint that stores nothing."""

    def load(self) -> Latents | None:
        """Nothing was saved."""
        return None

    def save(self, state: Latents) -> None:
        """Do nothing."""


def make(test: SmokeTest, show: Print) -> Iterator[Check]:
    """Render the clips and check them. Raises InputError or RenderError if they cannot be rendered."""
    from svi_story.engines.base import open_anchor
    from svi_story.engines.svi.engine import Svi, SviOptions
    from svi_story.plan.fingerprints import Fingerprints

    with tempfile.TemporaryDirectory(prefix="svi-story-") as folder:
        fingerprints = Fingerprints(Path(folder) / "memo.json")
        first, second, empty = segments(test, Path(folder), fingerprints)
        start = time.monotonic()
        options = SviOptions(test.models, dtype=test.dtype, precision=test.precision)
        engine = Svi(options, fingerprints.file)
        with engine:
            for note in engine.notes(first):
                show(f"note: {note}")
            engine.prepare([first, second, empty])
            show("clip 1 of 3: away from the anchor")
            away = _clip(engine, first, None)
            show("clip 2 of 3: back to it")
            back = _clip(engine, second, away.carry())
            show("clip 3 of 3: the second again, with an empty anchor")
            blind = _clip(engine, empty, away.carry())
            seconds = time.monotonic() - start
            kernel = engine.environment()["attention"]
            if test.precision != "bf16":
                kernel += f" and {test.precision} weights"
        anchor = open_anchor(first.anchor)
        made = f"3 clips of {first.frames} frames at {first.size}, {first.sampler.steps} steps"
        what = f"{made}, in {seconds:.0f} s with {kernel}; every number finite"
        yield Check("smoke: clips", "ok", what)
        weights = engine.identity.found
        yield check_loras(test.variant, weights, fingerprints.file)
        yield check_conditioning(weights, second, away.carry(), anchor)
        yield check_reading(back, blind)
        yield check_return(weights, anchor, back, blind)
        yield Check("smoke: pictures", "ok", str(save_pictures(test, anchor, (away, back, blind))))


def segments(test: SmokeTest, folder: Path, fingerprints: Fingerprints) -> tuple[Segment, Segment, Segment]:
    """The two clips, and the second with an empty anchor. Raises InputError for invalid settings."""
    from PIL import Image

    from svi_story.plan.resolve import plan_film
    from svi_story.storyboard.source import load
    from svi_story.storyboard.templates import create

    template = create("minimal", folder / "template")
    reference = test.reference or min(template.parent.glob("images/*"))
    if not reference.is_file():
        raise InputError(Problem("no such image; check the path", file=str(reference)))
    engine = {"variant": test.variant, "steps": test.steps, "max_frames": test.frames}
    clips = [{"prompt": prompt} for prompt in PROMPTS]
    written = {"version": 1, "resolution": test.size, "engine": engine, "clips": clips}
    board = folder / "smoke.yaml"
    board.write_text(json.dumps({**written, "reference": str(reference.resolve())}), "utf-8")
    try:
        first, second = (shot.segments[0] for shot in plan_film(load(board), fingerprints).shots)
    except InputError as error:  # the user wrote options, not a board
        raise InputError(
            *(replace(problem, file="doctor --smoke", line=0) for problem in error.problems)
        ) from error
    nothing = folder / "empty.png"
    Image.new("RGB", (first.size.width, first.size.height), (127, 127, 127)).save(nothing)
    anchor = fingerprints.anchor(nothing, first.size, first.anchor.fit)
    return first, second, replace(second, anchor=anchor)


def _clip(engine: Svi, segment: Segment, carry: Carry | None) -> RenderedClip:
    latents = engine.sample(segment, carry, NoCheckpoint(), lambda _done, _steps: None)
    return RenderedClip(latents, np.stack(list(engine.decode(segment, latents))))


def check_loras(variant: Variant, weights: Weights, digest: Digest) -> Check:
    """Checks that the variant's pair changes every layer of SVI's LoRAs (otherwise the engine refuses it)."""
    from svi_story.engines.svi.weights.candidates import EXPERTS
    from svi_story.engines.svi.weights.loading import read_transformer
    from svi_story.engines.svi.weights.locate import SVI
    from svi_story.engines.svi.weights.lora import LoraUse, known_role, read_lora

    models, pair = weights.models(), weights.pair(SVI[variant])
    lines: list[str] = []
    for expert in EXPERTS:
        entries = read_transformer(models.expert(expert)).entries
        shapes = {name: entry.shape for name, entry in entries.items()}
        changed = read_lora(LoraUse(pair.of(expert), 1.0, whole=True), shapes)
        known = known_role(digest(pair.of(expert)))
        lines.append(f"{expert}: {len(changed)} layers, {'official' if known else 'not known by its hash'}")
    return Check("smoke: LoRA", "ok", f"SVI {variant} on every layer it is for; {'; '.join(lines)}")


def check_conditioning(weights: Weights, segment: Segment, carry: Carry, anchor: Frame) -> Check:
    """Checks that the conditioning has exactly the values that the variant prescribes."""
    import torch

    from svi_story.engines.svi import conditioning, vae
    from svi_story.engines.svi.weights.loading import Placement, load_vae

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_vae(weights.models().vae, Placement(device, torch.float32))
    seen: list[NDArray[np.float32]] = []
    encoded: list[NDArray[np.float32]] = []

    def encode(video: torch.Tensor) -> torch.Tensor:
        latents = vae.encode(model, video)
        seen.append(video.cpu().numpy())
        encoded.append(latents.cpu().numpy())
        return latents

    condition = conditioning.condition(segment, carry, anchor, encode).cpu().numpy()
    still = conditioning.to_pixels(anchor).numpy()
    mask, latents = condition[:, :4], condition[:, 4:]
    if segment.sampler.variant == "2.0":
        what = "the start, then the anchor in every frame"
        right = (seen[0][:, :, 1:] == still).all() and np.array_equal(latents, encoded[0])
    else:
        what = "the anchor's latent, the motion latents, then zeros"
        motion = carry.latents["latents"][:, :, -segment.sampler.motion_latents :]
        known = np.concatenate([encoded[0], motion], axis=2)
        count = known.shape[2]
        right = np.array_equal(latents[:, :, :count], known) and not latents[:, :, count:].any()
        right = right and np.array_equal(seen[0], still)
    if not right or not (mask[:, :, 0] == 1).all() or mask[:, :, 1:].any():
        return Check("smoke: conditioning", "lacking", f"it is not {what}", "please report this bug")
    return Check("smoke: conditioning", "ok", f"{what}; the mask is on the first frame alone")


def check_reading(back: RenderedClip, blind: RenderedClip) -> Check:
    """Checks that the anchor changes what the experts predict."""
    with_anchor, without = (made.latents["latents"].astype(np.float64) for made in (back, blind))
    difference = float(np.abs(with_anchor - without).mean() / without.std())
    detail = f"an empty anchor changes the second clip by {difference:.2f} standard deviations"
    if difference == 0:
        remedy = f"the experts do not read their conditioning: {suggest('models check')}"
        return Check("smoke: anchor read", "lacking", detail, remedy)
    return Check("smoke: anchor read", "ok", detail)


def check_return(weights: Weights, anchor: Frame, back: RenderedClip, blind: RenderedClip) -> Check:
    """How similar the second half of clip 2 is to the anchor, with and without it. Only an indication."""
    near, far = (_nearness(made.frames, anchor) for made in (back, blind))
    detail = f"likeness of clip 2's later half to the anchor: {near:.3f}, with an empty anchor {far:.3f}"
    if not is_full_size(weights):
        return Check("smoke: return", "ok", f"{detail}; {NOT_JUDGED}")
    look = "look at the pictures: does the subject come back as itself?"
    if near <= far:
        return Check("smoke: return", "warn", f"{detail}; the anchor draws nothing back", look)
    return Check("smoke: return", "ok", f"{detail}; {look}")


def is_full_size(weights: Weights) -> bool:
    """Whether the experts are as wide as Wan's 14B ones."""
    from svi_story.engines.svi.weights.formats import read_shards

    entries = read_shards(weights.models().high.weights)
    return entries["patch_embedding.weight"].shape[0] >= FULL_WIDTH


def _nearness(frames: Frames, anchor: Frame) -> float:
    later = frames[len(frames) // 2 :]
    return float(np.mean([_likeness(_coarse(frame), _coarse(anchor)) for frame in later]))


def _coarse(frame: Frame) -> NDArray[np.float64]:
    """The brightness of a picture in squares of 16 pixels: its layout, without details."""
    rows, columns = frame.shape[0] // 16 * 16, frame.shape[1] // 16 * 16
    squares = frame[:rows, :columns].astype(np.float64).mean(axis=2)
    coarse: NDArray[np.float64] = squares.reshape(rows // 16, 16, columns // 16, 16).mean(axis=(1, 3))
    return coarse.ravel()


def _likeness(some: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """The correlation of two arrays of one shape; 0 where one of them is flat."""
    some, other = (values.astype(np.float64) - values.mean() for values in (some, other))
    scale = float(np.linalg.norm(some) * np.linalg.norm(other))
    return float(some @ other / scale) if scale else 0.0


def save_pictures(
    test: SmokeTest, anchor: Frame, clips: tuple[RenderedClip, RenderedClip, RenderedClip]
) -> Path:
    """The anchor, then each clip's first, middle and last frame in a row of its own. Returns the file."""
    from PIL import Image

    rows = [np.concatenate([anchor] * 3, axis=1)]
    shown = ((made.frames[at] for at in (0, len(made.frames) // 2, -1)) for made in clips)
    rows += [np.concatenate(list(frames), axis=1) for frames in shown]
    with disk(test.folder, "making room for the pictures"):
        make_folder(test.folder.absolute())
    names = (test.folder / PICTURE.format(f"-{number}" if number > 1 else "") for number in count(1))
    target = next(name for name in names if not os.path.lexists(name) or test.outputs.is_ours(name))
    with test.outputs.file(target) as temporary, disk(target):
        Image.fromarray(np.concatenate(rows, axis=0)).save(temporary)
    return target
