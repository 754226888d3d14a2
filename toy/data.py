"""What the toy learns from: stories, cut for the VAE, and encoded for the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import networks
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from world import FRAMES, NEGATIVE, PROMPTS, SUBJECTS, State, Story, possible

from svi_story.engines.svi import text
from svi_story.engines.svi.conditioning import condition_on_latents, make_mask
from svi_story.enginespec.sampling import SamplingSettings
from svi_story.enginespec.svi import overlap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from diffusers import AutoencoderKLWan
    from numpy.random import Generator
    from numpy.typing import NDArray
    from world import Film

SEED = 18
PRO_OVERLAP = overlap(SamplingSettings(variant="2.0-pro"))
ACTIONS = list(PROMPTS)
SINGLES, CHAINS, CLIPS = 3200, 1200, 4
"""Clips from anywhere in stories, chains of clips, and clips in each chain."""
PICTURES = 0.4
"""The share of the VAE's training that knows pictures alone, which is fast: moving ones come after them."""


# --- films


def begin_anywhere(rng: Generator) -> tuple[Story, Film]:
    """A story at its beginning, or in its middle, and the anchor."""
    story = Story.begin(rng)
    anchor, fate = story.picture(), rng.random()
    if fate < 0.3:
        story.state = State(None)
    elif fate < 0.8:
        story.state = State(float(rng.uniform(18, 46)), hat=bool(rng.random() < 0.35))
    return story, anchor


def choose(story: Story, rng: Generator) -> str:
    """What happens next: leaving and coming back more often than they would by chance."""
    actions = possible(story.state)
    weights = np.array([3.0 if action.startswith(("leave", "return")) else 2.0 for action in actions])
    return str(rng.choice(actions, p=weights / weights.sum()))


def to_video(films: Sequence[Film]) -> Tensor:
    """Films of equal length -> video_BCFHW in [-1, 1]."""
    return torch.from_numpy(np.stack(films)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def pieces(bank: NDArray[np.uint8], rng: Generator, done: float, most: int) -> list[Film]:
    """A batch: pictures; later short pieces around the creature, and now and then a whole clip."""
    kind = rng.random() if done > PICTURES else 0
    frames, size, count = (1, 64, 12) if kind < 0.08 else (5, 32, 12) if kind < 0.85 else (FRAMES, 64, 1)
    batch = []
    for at in rng.integers(len(bank), size=min(count, most)):
        first = rng.integers(FRAMES - frames + 1)
        film = bank[at, first : first + frames]
        middle = film[frames // 2].astype(np.int16)
        drawn = np.abs(middle - np.median(middle, axis=1, keepdims=True)).sum(-1) > 90
        row, column = rng.integers(size, size=2) if size < 64 else (0, 0)
        if size < 64 and drawn.any() and rng.random() < 0.8:
            rows, columns = np.nonzero(drawn)
            row, column = (int(where.mean()) - size // 2 + rng.integers(-9, 10) for where in (rows, columns))
        row, column = (int(np.clip(start, 0, 64 - size)) for start in (row, column))
        batch.append(film[:, row : row + size, column : column + size])
    return batch


# --- latents


def make_data(work: Path, share: float) -> dict[str, int]:
    """Draw stories and encode them; give the VAE's latents their statistics.

    `single`: a clip from anywhere in a story; `start`: what SVI 2.0 sees there, the frame before and then
    the anchor. `chain`: clips that continue from each other as SVI 2.0 Pro's do; `empty`: the place alone.
    `share` of the planned stories are drawn; how many clips became of them is returned.
    """
    packed = make_text(work)
    vae = load_vae(work / "vae.safetensors")
    rng = np.random.default_rng([SEED, 2])
    data: dict[str, list[Tensor]] = {"single": [], "start": [], "chain": [], "empty": []}
    actions: dict[str, list[int]] = {"single": [], "chain": []}

    def encode(films: Sequence[Film]) -> Tensor:
        with torch.no_grad():
            return networks.encode(vae, to_video(films))

    for _ in range(max(1, round(SINGLES * share / CLIPS))):
        clips, starts = [], []
        for _ in range(CLIPS):
            story, anchor = begin_anywhere(rng)
            anchor = story.empty() if rng.random() < 0.1 else anchor  # so that the anchor is what decides
            actions["single"].append(ACTIONS.index(action := choose(story, rng)))
            clips.append(story.clip(action))
            starts.append(np.concatenate([clips[-1][:1], np.repeat(anchor, FRAMES - 1, 0)]))
        data["single"].append(latents := encode(clips))
        with torch.no_grad():  # as the model will see it: decoded
            shown = networks.decode(vae, latents[:, :, :1])[:, :, 0].clamp(-1, 1).permute(0, 2, 3, 1)
        for start, frame in zip(starts, shown, strict=True):
            start[0] = ((frame + 1) * 127.5).to(torch.uint8).numpy()
        data["start"].append(encode(starts))
    for _ in range(max(1, round(CHAINS * share))):
        clips, story = [], Story.begin(rng)
        data["empty"].append(encode([story.empty()]))
        for place in range(CLIPS):
            actions["chain"].append(ACTIONS.index(action := choose(story, rng)))
            clips.append(story.clip(action, PRO_OVERLAP if place else 1))
        data["chain"].append(encode(clips))
    tensors = {name: torch.cat(parts) for name, parts in data.items()}
    every = tensors["single"]
    mean_C, std_C = every.mean((0, 2, 3, 4)), every.std((0, 2, 3, 4))
    std_C = std_C.clamp(min=0.1 * float(std_C.max()))
    normalised = {name: (z - _column(mean_C)) / _column(std_C) for name, z in tensors.items()}
    networks.normalise(vae, mean_C, std_C)
    save_file(vae.state_dict(), work / "vae-normalised.safetensors")
    numbers = {f"{name} actions": torch.tensor(values) for name, values in actions.items()}
    save_file(
        {name: z.half().contiguous() for name, z in normalised.items()} | numbers | packed,
        work / "data.safetensors",
    )
    return {"single": len(every), "chain": len(tensors["chain"])}


def make_text(work: Path) -> dict[str, Tensor]:
    """Write the tokenizer and the text encoder, which are not trained.

    Returns the embeddings of the negative prompt and of every way to say an action, packed.
    """
    torch.manual_seed(SEED)
    made, file = networks.make_tokenizer(), work / "tokenizer.json"
    made.save(str(file))
    encoder = networks.make_text_encoder(made.get_vocab_size())
    save_file(
        {name: weight.detach() for name, weight in encoder.named_parameters()}, work / "text.safetensors"
    )
    tokenizer, cpu = text.load_tokenizer(file), torch.device("cpu")
    prompts = [
        NEGATIVE,
        *(way.format(who) for action in ACTIONS for way in PROMPTS[action] for who in SUBJECTS),
    ]
    context_BLD, bias = networks.pack([text.encode(encoder, tokenizer, prompt, cpu) for prompt in prompts])
    return {"context": context_BLD, "bias": bias}


def load_vae(file: Path) -> AutoencoderKLWan:
    """A trained VAE."""
    vae = networks.make_vae()
    vae.load_state_dict(load_file(file))
    return vae


def _column(values_C: Tensor) -> Tensor:
    return values_C.view(1, -1, 1, 1, 1)


# --- batches


class Batch(NamedTuple):
    """What an expert learns from."""

    x_BCTHW: Tensor
    """Clean latents."""
    y_BCTHW: Tensor
    """The conditioning, with its mask."""
    actions: Tensor


class Films:
    """The encoded stories."""

    def __init__(self, work: Path, size: int) -> None:
        tensors = load_file(work / "data.safetensors")
        self.size = size
        self.single, self.start, chain = (tensors[name].float() for name in ("single", "start", "chain"))
        self.chain, self.empty = chain.reshape(-1, CLIPS, *chain.shape[1:]), tensors["empty"].float()
        self.context, self.bias = tensors["context"], tensors["bias"]
        self.single_actions = tensors["single actions"]
        self.chain_actions = tensors["chain actions"].reshape(-1, CLIPS)

    def batch(self, variant: str, rng: Generator) -> Batch:
        """For one of SVI's variants, or with "" for a base model, which sees the first frame alone."""
        if variant == "2.0-pro":
            return self._continued(rng)
        at = torch.from_numpy(rng.integers(len(self.single), size=self.size))
        x_BCTHW = self.single[at]
        if not variant:
            y_BCTHW = condition_on_latents(x_BCTHW[:, :, :1], None, x_BCTHW.shape[2])
        else:
            y_BCTHW = torch.cat([make_mask(x_BCTHW), self.start[at]], dim=1)
        return Batch(x_BCTHW, y_BCTHW, self.single_actions[at])

    def _continued(self, rng: Generator) -> Batch:
        """Pro: the anchor, and the last latent of the clip before, not always as clean as in the films."""
        at = torch.from_numpy(rng.integers(len(self.chain), size=self.size))
        clip = torch.from_numpy(rng.integers(CLIPS, size=self.size))
        anchor, begins = self.chain[at, 0, :, :1], (clip == 0).view(-1, 1, 1, 1, 1)
        nobody = torch.from_numpy(rng.random(self.size) < 0.1).view(-1, 1, 1, 1, 1) & ~begins
        anchor = torch.where(nobody, self.empty[at], anchor)
        motion = self.chain[at, (clip - 1).clamp(min=0), :, -1:]
        motion = motion + 0.15 * torch.rand(self.size, 1, 1, 1, 1) * torch.randn_like(motion)
        y_BCTHW = condition_on_latents(anchor, torch.where(begins, 0, motion), self.chain.shape[3])
        return Batch(self.chain[at, clip], y_BCTHW, self.chain_actions[at, clip])

    def say(self, actions: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
        """Context and bias of a batch; every tenth has the negative prompt instead."""
        ways = (len(self.context) - 1) // len(ACTIONS)
        at = 1 + actions * ways + torch.from_numpy(rng.integers(ways, size=len(actions)))
        at[torch.from_numpy(rng.random(len(actions)) < 0.1)] = 0
        return self.context[at], self.bias[at]
