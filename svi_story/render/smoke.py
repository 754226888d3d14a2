"""Renders a short chain with the real engine and checks it: the installation test of the SVI authors.

In their test a person leaves the picture; the installation is correct if they return with a similar
appearance. The user judges whether it is the same person. Checked here: everything runs and all numbers are
finite, the LoRAs change every layer that they should, the conditioning is the anchor's, the experts react to
it, and the last clip has the colours of the anchor's subject again, more than one rendered with an empty
picture as its anchor.
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
    from collections.abc import Callable, Iterator, Sequence

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
"""The width of the 14B experts. Smaller ones do not understand the prompts above."""
NOT_JUDGED = (
    "not judged: experts smaller than the 14B ones do not understand this test's prompts; --board takes a "
    "board with prompts of their own"
)
SHADES = 5
"""Levels of red, green and blue that colours are counted in."""
SUBJECT = 0.02
"""The least share of a picture that has left it, if a subject has."""
BACK = 0.5
"""The least share of the subject's colours that is back: what tells right anchors from empty ones on the
toy (docs/gpu.md)."""
UNKNOWN = "what is usual with Wan 2.2 is unknown"
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
    board: Path | None = None
    """Its first chain is rendered, instead of what the settings above say; None: two clips."""


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
    from svi_story.engines.svi.engine import Svi
    from svi_story.engines.svi.options import SviOptions
    from svi_story.plan.fingerprints import Fingerprints

    with tempfile.TemporaryDirectory(prefix="svi-story-") as folder:
        fingerprints = Fingerprints(Path(folder) / "memo.json")
        chain, blind = segments(test, Path(folder), fingerprints)
        last, count = chain[-1], len(chain) + 1
        start = time.monotonic()
        options = SviOptions(test.models, dtype=test.dtype, precision=test.precision)
        engine = Svi(options, fingerprints.file)
        with engine:
            for note in engine.notes(last):
                show(f"note: {note}")
            engine.prepare([*chain, blind])
            made: list[RenderedClip] = []
            for number, segment in enumerate(chain, 1):
                show(f"clip {number} of {count}: {segment.prompt}")
                made.append(_clip(engine, segment, made[-1].carry() if made else None))
            show(f"clip {count} of {count}: the last one again, with an empty anchor")
            carry = made[-2].carry()
            without = _clip(engine, blind, carry)
            seconds = time.monotonic() - start
            kernel = engine.environment()["attention"]
            if test.precision != "bf16":
                kernel += f" and {test.precision} weights"
        anchor = open_anchor(last.anchor)
        what = f"{count} clips of {last.frames} frames at {last.size}, {last.sampler.steps} steps"
        yield Check("smoke: clips", "ok", f"{what}, in {seconds:.0f} s with {kernel}; every number finite")
        weights = engine.identity.found
        yield check_loras(last.sampler.variant, weights, fingerprints.file)
        yield check_conditioning(weights, last, carry, anchor)
        yield check_reading(made[-1], without)
        judged = test.board is not None or is_full_size(weights)
        yield check_return(anchor, made[-2], made[-1], without, judged=judged)
        yield Check("smoke: pictures", "ok", str(save_pictures(test, anchor, (*made, without))))


def segments(
    test: SmokeTest, folder: Path, fingerprints: Fingerprints
) -> tuple[tuple[Segment, ...], Segment]:
    """The chain, and its last clip with an empty anchor. Raises InputError for invalid settings."""
    from PIL import Image

    from svi_story.plan.resolve import plan_film
    from svi_story.storyboard.source import load

    board = test.board or write_board(test, folder)
    try:
        film = plan_film(load(board), fingerprints, DEFAULT)
    except InputError as error:
        if test.board:
            raise
        raise InputError(  # the user wrote options, not a board
            *(replace(problem, file="doctor --smoke", line=0) for problem in error.problems)
        ) from error
    ends = next((at for at, shot in enumerate(film.shots) if at and shot.starts_chain), len(film.shots))
    chain = tuple(segment for shot in film.shots[:ends] for segment in shot.segments)
    if len(chain) < 2:
        what = "its first chain has one clip; the subject has to leave in one and come back in another"
        raise InputError(Problem(what, file=str(test.board)))
    nothing, last = folder / "empty.png", chain[-1]
    Image.new("RGB", (last.size.width, last.size.height), (127, 127, 127)).save(nothing)
    return chain, replace(last, anchor=fingerprints.anchor(nothing, last.size, last.anchor.fit))


def write_board(test: SmokeTest, folder: Path) -> Path:
    """The board of two clips that the settings ask for. Raises InputError without the reference image."""
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
    return board


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


def check_return(
    anchor: Frame, away: RenderedClip, back: RenderedClip, blind: RenderedClip, *, judged: bool
) -> Check:
    """How much of what left the picture is back in the last clip, with the anchor and without it."""
    gone = gone_colours(anchor, away.frames[-1])
    near, far = (returned(gone, away.frames[-1], clip.frames) for clip in (back, blind))
    detail = f"{near:.0%} of the colours that left are back, with an empty anchor {far:.0%}"
    if not judged:
        return Check("smoke: return", "ok", f"{detail}; {NOT_JUDGED}")
    look = "look at the pictures: does the subject come back as itself?"
    if gone.sum() < SUBJECT:
        what = (
            f"{gone.sum():.0%} of the picture changed its colours: nothing has left it, so nothing can return"
        )
        return Check("smoke: return", "warn", what, look)
    detail += f"; on the toy {BACK:.0%} tells right from wrong, {UNKNOWN}"
    if near < BACK or near <= far:
        return Check("smoke: return", "warn", f"{detail}; the anchor draws little back", look)
    return Check("smoke: return", "ok", f"{detail}; {look}")


def is_full_size(weights: Weights) -> bool:
    """Whether the experts are as wide as Wan's 14B ones."""
    from svi_story.engines.svi.weights.formats import read_shards

    entries = read_shards(weights.models().high.weights)
    return entries["patch_embedding.weight"].shape[0] >= FULL_WIDTH


def gone_colours(anchor: Frame, away: Frame) -> NDArray[np.float64]:
    """The colours of the anchor that the picture without its subject lacks, as `_colours`."""
    gone: NDArray[np.float64] = (_colours(anchor) - _colours(away)).clip(0)
    return gone


def returned(gone: NDArray[np.float64], away: Frame, frames: Frames) -> float:
    """The share (0 to 1) of the gone colours that the later half of a clip has and `away` has not.

    Colours are counted wherever they are, as a subject returns to any place and in any pose.
    """
    later, before = frames[len(frames) // 2 :], _colours(away)
    found = [np.minimum((_colours(frame) - before).clip(0), gone).sum() for frame in later]
    return float(np.mean(found) / gone.sum()) if gone.any() else 0.0


def _colours(frame: Frame) -> NDArray[np.float64]:
    """A picture's share of each colour [SHADES ** 3]; one between several shades counts for all, in part."""
    values = frame.reshape(-1, 3) / 255 * (SHADES - 1)
    lower = np.floor(values).astype(np.int64).clip(0, SHADES - 2)
    above = values - lower
    shares = np.zeros(SHADES**3)
    for corner in np.ndindex(2, 2, 2):
        weight = np.where(corner, above, 1 - above).prod(axis=1)
        place = (lower + corner) @ (SHADES**2, SHADES, 1)
        shares += np.bincount(place, weight, SHADES**3)
    return shares / len(values)


def save_pictures(test: SmokeTest, anchor: Frame, clips: Sequence[RenderedClip]) -> Path:
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
