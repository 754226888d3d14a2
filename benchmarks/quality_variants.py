"""What `quality.py` renders: stories of the toy's world, and the ways to render them, faults included."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("tests", "toy")]

import numpy as np
import svi_formats
import svi_support as support
import torch
from PIL import Image
from world import Story, possible, prompt

from svi_story.engines.svi import conditioning, vae
from svi_story.engines.svi.engine import Svi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from svi_formats import Plain, Write
    from torch import Tensor
    from world import Film

    from svi_story.engines.base import Carry, Frame
    from svi_story.plan.model import Segment

    Change = Callable[[Path], object]
    """Changes a copy of the models."""


SVI = ("2.0-pro", "2.0")
OVERLAPS = {"2.0-pro": 5, "2.0": 1}
"""Frames that a clip repeats of the one before."""
IN_SIGHT = ("jump", "hat", "walk", "duck", "wait", "walk", "jump", "duck", "walk", "wait")
AWAY = ("wait", "leave", "empty", "return", "hat", "jump", "leave", "empty", "return", "duck")
KINDS = {"in sight": IN_SIGHT, "away and back": AWAY}
FIRST_SEED = 20_000
"""Of the stories: neither trained on, nor those of toy/evaluate.py."""


# --- stories


@dataclass(frozen=True)
class Moment:
    """A clip of a story: what is asked for, and how things should stand at its end."""

    action: str
    story: Story


@dataclass(frozen=True)
class Chain:
    """Clips that continue from each other."""

    name: str
    svi: str
    kind: str
    anchor: Film
    empty: Film
    moments: tuple[Moment, ...]
    prompts: tuple[str, ...]
    seed: int
    drawn: Film
    """[clips, frames, 64, 64, 3]: the clips as they should be."""


def chains(clips: int, stories: int, variants: Sequence[str] = SVI, *, half: bool = False) -> list[Chain]:
    """The stories of all kinds, for variants of SVI; half: one kind for one, the other for the other."""
    found = []
    for story, (at, kind), svi in product(range(stories), enumerate(KINDS), variants):
        if at == variants.index(svi) or not half:
            seed = FIRST_SEED + 10 * story + at
            found.append(_chain(f"{kind.replace(' ', '-')}-{svi}-{story}", svi, kind, seed, clips))
    return found


def _chain(name: str, svi: str, kind: str, seed: int, clips: int) -> Chain:
    rng = np.random.default_rng(seed)
    story = Story.begin(rng)
    anchor, empty, moments = story.picture(), story.empty(), []
    drawn: list[Film] = []
    for what in KINDS[kind][:clips]:
        actions = [each for each in possible(story.state) if each.split()[0] == what] or [what]
        action = str(rng.choice(actions))
        drawn.append(story.clip(action, OVERLAPS[svi] if drawn else 1))
        moments.append(Moment(action, Story(story.place, story.look, story.state)))
    prompts = tuple(prompt(moment.action, rng) for moment in moments)
    return Chain(name, svi, kind, anchor, empty, tuple(moments), prompts, seed, np.stack(drawn))


# --- ways to render


@dataclass(frozen=True)
class Variant:
    """One way to render, beside the reference: float32, the files as they are, 20 steps."""

    group: str
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `svi_story.api.render`."""
    engine: Mapping[str, Any] = field(default_factory=dict)
    """Fields under `engine:` on the board."""
    models: Change | None = None
    """What is done to a copy of the models."""
    fault: Callable[[], AbstractContextManager[object]] = nullcontext
    """What is broken in the engine meanwhile."""
    seed: int = 0
    """Added to the seeds of the clips."""
    prepared: bool = False
    """Whether the experts are prepared first."""
    half: bool = False
    """Whether half of the chains are enough."""


# --- changes of the models


def experts(root: Path, change: Callable[[str, Path, Plain], object]) -> None:
    """Call a function with each expert's name, the path of its file without a suffix, and its tensors."""
    for expert, folder in support.EXPERT_FOLDERS.items():
        plain = {key: tensor.float() for key, tensor in svi_formats.expert(expert, root).items()}
        for file in (root / folder).glob("*.safetensors*"):
            file.unlink()
        change(expert, root / folder / "diffusion_pytorch_model", plain)


def stored(write: Write) -> Change:
    """The experts in a format."""

    def change(root: Path) -> None:
        experts(root, lambda _expert, path, plain: write(path, plain))

    return change


def linear(change: Callable[[Tensor], Tensor]) -> Change:
    """Other weights in the experts' linear layers, stored in float32."""

    def write(path: Path, plain: Plain) -> Plain:
        changed = {
            key: change(tensor) if svi_formats.is_linear(key, tensor) else tensor
            for key, tensor in plain.items()
        }
        return svi_formats.rounded(torch.float32)(path, changed)

    return stored(write)


def noisy(level: float) -> Change:
    """Noise of `level` standard deviations of each linear layer's weights."""
    generator = torch.Generator().manual_seed(0)

    def change(weight: Tensor) -> Tensor:
        return weight + level * weight.std() * torch.randn(weight.shape, generator=generator)

    return linear(change)


def bits(count: int) -> Change:
    """Linear layers in so many bits, with a scale for each row: far coarser than the formats in use."""
    most = 2 ** (count - 1) - 1

    def change(weight: Tensor) -> Tensor:
        scale = weight.abs().amax(dim=1, keepdim=True) / most
        rounded: Tensor = (weight / scale).round() * scale
        return rounded

    return linear(change)


def swapped(pairs: Callable[[Path], Iterable[tuple[Path, Path]]]) -> Change:
    """Files that change places."""

    def change(root: Path) -> None:
        for one, other in pairs(root):
            between = one.with_suffix(".between")
            one.rename(between)
            other.rename(one)
            between.rename(other)

    return change


def without_pairs(root: Path) -> None:
    """SVI's LoRA pairs change nothing any more."""
    for file in (root / support.LORAS).glob("*.safetensors"):
        support.change_file(file, lambda tensors: {key: 0 * tensor for key, tensor in tensors.items()})


def _expert_files(root: Path) -> Iterable[tuple[Path, Path]]:
    high, low = (root / support.EXPERT_FOLDERS[expert] for expert in ("high", "low"))
    return [(file, low / file.name) for file in high.glob("*.safetensors*")]


def _pairs_of_both_variants(root: Path) -> Iterable[tuple[Path, Path]]:
    return [
        (support.lora_file(root, expert, "2.0"), support.lora_file(root, expert, "2.0-pro"))
        for expert in ("high", "low")
    ]


# --- faults in the engine


def conditioned(
    anchor: Callable[[Segment, Frame], Frame] = lambda _segment, picture: picture, *, carried: bool = True
) -> Callable[[], AbstractContextManager[object]]:
    """Other anchors than the board's, or nothing that is carried over from the clip before."""
    condition = conditioning.condition

    def faulty(segment: Segment, carry: Carry | None, picture: Frame, encode: Any) -> Tensor:
        return condition(segment, carry if carried else None, anchor(segment, picture), encode)

    return partial(patch.object, conditioning, "condition", faulty)


def grey(_segment: Segment, picture: Frame) -> Frame:
    """Nothing to see."""
    return np.full_like(picture, 127)


def another(segment: Segment, _picture: Frame) -> Frame:
    """The same place, another creature."""
    return _beside(segment, "another")


def left_empty(segment: Segment, picture: Frame) -> Frame:
    """The empty place, from the third clip on."""
    return _beside(segment, "empty") if number_of(segment) > 2 else picture


def _beside(segment: Segment, what: str) -> Frame:
    """A picture that `quality.write_boards` wrote beside the anchor."""
    path = segment.anchor.path
    return np.asarray(Image.open(path.with_name(f"{path.stem}-{what}.png")).convert("RGB"))


def drawn() -> AbstractContextManager[object]:
    """No sampling: the latents of the film as the toy's world draws it, which is the best there can be."""

    def sample(svi: Svi, segment: Segment, *_given: object) -> dict[str, NDArray[np.float32]]:
        films = np.load(segment.anchor.path.with_suffix(".npy"))
        film = torch.tensor(films[number_of(segment) - 1]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = svi._through_vae(
            segment.size, segment.frames, lambda model, strips: vae.encode(model, film, strips)
        )
        return {"latents": latents.numpy()}

    return patch.multiple(Svi, sample=sample, advance=lambda *_given: None)


def number_of(segment: Segment) -> int:
    """The clip's, from 1."""
    return int(segment.clip.rpartition("-")[2])


FP8 = linear(lambda weight: weight.to(torch.float8_e4m3fn).float())
FILES = {
    "bf16": svi_formats.rounded(torch.bfloat16),
    "GGUF Q8_0": svi_formats.FORMATS["Q8_0"],
    "int8, scales per row": svi_formats.FORMATS["int8_tensorwise per row"],
    "fp8 e4m3, scales per row": svi_formats.FORMATS["LightX2V"],
    "fp8 e4m3, a scale per tensor": svi_formats.FORMATS["kijai e4m3"],
    "fp8 e5m2, a scale per tensor": svi_formats.FORMATS["kijai e5m2"],
    "GGUF Q5_1": svi_formats.FORMATS["Q5_1"],
    "GGUF Q4_1": svi_formats.FORMATS["Q4_1"],
    "GGUF Q4_0": svi_formats.FORMATS["Q4_0"],
}
REFERENCE = "reference"
STEPS, NUMBERS, KERNELS, MEMORY, FORMAT = "steps", "numbers", "kernels", "memory", "files"
FAULT = "fault"
VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant(REFERENCE),
    "drawn, through the VAE": Variant(REFERENCE, fault=drawn),
    "other seeds": Variant(REFERENCE, seed=50_000),
    "50 steps": Variant(STEPS, engine={"steps": 50}),
    "10 steps": Variant(STEPS, engine={"steps": 10}),
    "8 steps": Variant(STEPS, engine={"steps": 8}),
    "4 steps": Variant(STEPS, engine={"steps": 4}),
    "--dtype bfloat16": Variant(NUMBERS, {"dtype": "bfloat16"}),
    "--weights int8": Variant(NUMBERS, {"weights": "int8"}),
    "--weights int8 --dtype bfloat16": Variant(NUMBERS, {"weights": "int8", "dtype": "bfloat16"}),
    "--weights int8, prepared": Variant(NUMBERS, {"weights": "int8"}, prepared=True, half=True),
    "compiled: --compile": Variant(KERNELS, {"compile": True}, half=True),
    "--attention torch-math": Variant(KERNELS, {"attention": "torch-math"}, half=True),
    "--memory offload": Variant(MEMORY, {"memory": "offload"}, half=True),
    "--memory stream": Variant(MEMORY, {"memory": "stream"}, half=True),
    "--vae strips": Variant(MEMORY, {"vae": "strips"}, half=True),
    "--vae tiles": Variant(MEMORY, {"vae": "tiles"}, half=True),
    **{name: Variant(FORMAT, models=stored(write)) for name, write in FILES.items()},
    "fp8 e4m3 without scales (refused as a file)": Variant(FORMAT, models=FP8),
    "anchor: grey": Variant(FAULT, fault=conditioned(grey), half=True),
    "anchor: another creature": Variant(FAULT, fault=conditioned(another), half=True),
    "anchor: empty from the third clip on": Variant(FAULT, fault=conditioned(left_empty), half=True),
    "nothing carried over": Variant(FAULT, fault=conditioned(carried=False), half=True),
    "LoRA pair missing": Variant(FAULT, models=without_pairs, half=True),
    "LoRA pair of the other variant": Variant(FAULT, models=swapped(_pairs_of_both_variants), half=True),
    "experts swapped": Variant(FAULT, models=swapped(_expert_files), half=True),
    "experts: noise of 10 %": Variant(FAULT, models=noisy(0.1), half=True),
    "experts: noise of 30 %": Variant(FAULT, models=noisy(0.3), half=True),
    "experts: noise of 100 %": Variant(FAULT, models=noisy(1.0), half=True),
    "experts: 3 bits": Variant(FAULT, models=bits(3), half=True),
    "experts: 2 bits": Variant(FAULT, models=bits(2), half=True),
}
"""What is compared. A new way to render, such as a cache of steps, is one line here."""
