"""What has the toy learned? Stories that it was not trained on, by the engine's own code, many at once.

    python toy/evaluate.py                  # 64 stories
    python toy/evaluate.py --stories 8 --steps 8

In one story the creature leaves and comes back, once with its anchor, and once with the empty place as
the anchor from the third clip on: then nothing tells who comes back. In another it stays and gets a hat.
The judge reads pixels (world.py). What it reads of true films, encoded and decoded, is the most to expect.
What the VAE keeps is also measured on films that are drawn as those of its training were, from other seeds.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import diffusers
import numpy as np
import torch
from data import PRO_OVERLAP, begin_anywhere, choose, to_video
from export import MODELS
from train import SCHEDULE
from world import NEGATIVE, Story, obeys, prompt, recognise

from svi_story.engines.svi import conditioning, vae
from svi_story.engines.svi.attention import choose_kernel
from svi_story.engines.svi.experts import Experts
from svi_story.engines.svi.sampler import Inputs, denoise, guided, latent_count, make_noise, make_steps
from svi_story.engines.svi.text import Embeddings
from svi_story.engines.svi.weights.loading import Placement, load_vae
from svi_story.engines.svi.weights.locate import ModelFolders, find_weights
from svi_story.engines.svi.weights.lora import LoraUse
from svi_story.enginespec.sampling import Guidance, Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from world import Film

    from svi_story.enginespec.sampling import Variant

OVERLAP: dict[Variant, int] = {"2.0": 1, "2.0-pro": PRO_OVERLAP}
SVI: dict[Variant, tuple[str, str]] = {
    "2.0": ("svi_high", "svi_low"),
    "2.0-pro": ("svi_pro_high", "svi_pro_low"),
}
FIRST_SEED = 10_000
"""Of the held-out stories; training draws from other streams."""
TOGETHER = 16
"""Stories that are rendered at once."""


@dataclass(frozen=True)
class Score:
    """How many of how many."""

    hits: int
    of: int

    def __str__(self) -> str:
        return f"{self.hits / self.of:.2f} ({self.hits}/{self.of})" if self.of else "-"


class Toy:
    """The checkpoint in a folder, loaded as the engine loads it, in float32 on the CPU."""

    def __init__(self, folder: Path) -> None:
        diffusers.utils.logging.set_verbosity_error()  # its advice is for programmers
        self.weights = find_weights(ModelFolders((folder,)))
        paths, device = self.weights.models(), torch.device("cpu")
        placement = Placement(device, torch.float32)
        self.vae = load_vae(paths.vae, placement)
        self.experts = Experts(paths, placement, choose_kernel(device, placement.dtype))
        self.text = Embeddings(paths, placement, lambda _: None)

    def through_vae(self, clips: Film) -> Film:
        """[stories, frames, 64, 64, 3], encoded and decoded."""
        return self._decode(vae.encode(self.vae, to_video(list(clips))))

    def chain(
        self,
        variant: Variant,
        anchors: Sequence[Film],
        prompts: Sequence[Sequence[str]],
        seed: int,
        steps: int,
    ) -> list[Film]:
        """Clips that continue from each other, [stories, frames, 64, 64, 3] each.

        For each clip there are the anchors [stories, 64, 64, 3] and the stories' prompts.
        """
        pair = self.weights.pair(SVI[variant])
        self.experts.set_loras(
            {"high": [LoraUse(pair.high, 1.0, whole=True)], "low": [LoraUse(pair.low, 1.0, whole=True)]}
        )
        sampler = Sampler(variant, steps, Guidance(1, 1), SCHEDULE.shift, SCHEDULE.boundary, motion_latents=1)
        clips: list[Film] = []
        latents_BCTHW: Tensor | None = None
        for clip, (anchor, texts) in enumerate(zip(anchors, prompts, strict=True)):
            anchor_BCFHW = to_video(list(anchor[:, None]))
            frames = 17
            if variant == "2.0":
                start_BCFHW = to_video(list(clips[-1][:, -1:])) if clips else anchor_BCFHW
                y_BCTHW = conditioning.condition_on_frames(start_BCFHW, anchor_BCFHW, frames, self._encode)
            else:
                motion_BCTHW = None if latents_BCTHW is None else latents_BCTHW[:, :, -1:]
                y_BCTHW = conditioning.condition_on_latents(
                    self._encode(anchor_BCFHW), motion_BCTHW, latent_count(frames)
                )
            planned = make_steps(sampler)
            context_BLD = torch.cat([self.text.context(one) for one in texts])
            timestep_S = torch.tensor([step.timestep for step in planned])
            inputs = Inputs(y_BCTHW, context_BLD, self.text.context(NEGATIVE), timestep_S)
            shape = (1, y_BCTHW.shape[1] - 4, *y_BCTHW.shape[2:])
            seeds = [seed + 1000 * clip + story for story in range(len(texts))]
            noise_BCTHW = torch.cat([make_noise(one, shape, torch.float32) for one in seeds])
            predict = guided(inputs, self.experts.use)
            latents_BCTHW = denoise(noise_BCTHW, planned, predict, lambda *_: None)
            clips.append(self._decode(latents_BCTHW))
        return clips

    def _encode(self, video_BCFHW: Tensor) -> Tensor:
        return vae.encode(self.vae, video_BCFHW)

    def _decode(self, latents_BCTHW: Tensor) -> Film:
        video_BCFHW = vae.decode(self.vae, latents_BCTHW)
        return np.stack([vae.to_frames(video_BCFHW[at : at + 1]).numpy() for at in range(len(video_BCFHW))])


Plans = list[list[str]]
"""The actions of each story."""


def away_and_back(rng: np.random.Generator) -> list[str]:
    """A story that leaves and returns."""
    sides = [str(side) for side in rng.choice(["left", "right"], size=2)]
    first = str(rng.choice(["wait", "jump", "duck"]))
    return [first, f"leave {sides[0]}", "empty", f"return {sides[1]}", "jump"]


def in_sight(rng: np.random.Generator) -> list[str]:
    """A story in which a hat, which no anchor has, is put on and stays."""
    sides = [str(side) for side in rng.permutation(["left", "right"])]
    return ["jump", "hat", f"walk {sides[0]}", "duck", f"walk {sides[1]}", "wait"]


def judge(stories: list[Story], plans: Plans, clips: list[Film], overlap: int) -> list[dict[str, Score]]:
    """By clip: obedience, and of those there at its end the right colour, the right kind, and a hat."""
    told = []
    for clip, films in enumerate(clips):
        overlapping = overlap if clip else 1
        cases = list(zip(stories, plans, films, strict=True))
        obeyed = sum(obeys(plan[clip], film, story.place, overlapping) for story, plan, film in cases)
        known = [(story.look, recognise(film[-1], story.place)) for story, _, film in cases]
        seen = [(look, *found) for look, found in known if found is not None]
        told.append(
            {
                "obeyed": Score(obeyed, len(cases)),
                "colour": Score(sum(look.colour == found.colour for look, found, _ in seen), len(seen)),
                "kind": Score(sum(look.kind == found.kind for look, found, _ in seen), len(seen)),
                "hat": Score(sum(hat for _, _, hat in seen), len(seen)),
            }
        )
    return told


def rendered(
    toy: Toy, variant: Variant, stories: list[Story], plans: Plans, steps: int, *, empty: bool
) -> list[Film]:
    """The clips of all stories, a few stories at a time; `empty`: the anchor is, from the third clip on."""
    parts = []
    for first in range(0, len(stories), TOGETHER):
        some, said = stories[first : first + TOGETHER], plans[first : first + TOGETHER]
        rng = np.random.default_rng(FIRST_SEED + first)
        anchor = np.concatenate([story.picture() for story in some])
        nobody = np.concatenate([story.empty() for story in some])
        anchors = [nobody if empty and clip > 1 else anchor for clip in range(len(said[0]))]
        prompts = [[prompt(plan[clip], rng) for plan in said] for clip in range(len(said[0]))]
        parts.append(toy.chain(variant, anchors, prompts, FIRST_SEED + first, steps))
    return [np.concatenate(clip) for clip in zip(*parts, strict=True)]


def psnr_of(drawn: Film, seen: Film) -> list[float]:
    """Of every clip of [clips, frames, 64, 64, 3], dB."""
    error = ((drawn / 255.0 - seen / 255.0) ** 2).mean((1, 2, 3, 4))
    return list(map(float, -10 * np.log10(error)))


def kept_by_vae(toy: Toy, count: int) -> float:
    """The mean PSNR of films drawn as in training, one from each seed, dB."""
    found: list[float] = []
    for first in range(0, count, TOGETHER):
        films = []
        for at in range(first, min(first + TOGETHER, count)):
            rng = np.random.default_rng(FIRST_SEED + at)
            story, _anchor = begin_anywhere(rng)
            films.append(story.clip(choose(story, rng)))
        drawn = np.stack(films)
        found.extend(psnr_of(drawn, toy.through_vae(drawn)))
    return round(float(np.mean(found)), 2)


def evaluate(models: Path, variant: Variant, count: int, steps: int) -> dict[str, object]:
    """Everything about a variant, as plain values; a line is printed for every clip."""
    torch.set_num_threads(1)  # so small a model is slower on several
    toy, overlap, result = Toy(models), OVERLAP[variant], dict[str, object]()
    if variant == "2.0":
        result["films as in training, PSNR"] = kept = kept_by_vae(toy, count)
        print(f"films as in training: PSNR {kept} dB", flush=True)

    def told(name: str, scores: list[dict[str, Score]], actions: list[str]) -> None:
        lines = [name]
        for action, score in zip(actions, scores, strict=True):
            values = (f"{what} {value}" for what, value in score.items())
            lines.append("  ".join([f"  {action.split()[0]:8}", *values]))
        print("\n".join(lines), flush=True)
        result[name] = [{what: [value.hits, value.of] for what, value in score.items()} for score in scores]

    for name, planned in (("away and back", away_and_back), ("in sight", in_sight)):
        rngs = [np.random.default_rng(FIRST_SEED + at) for at in range(count)]
        stories, plans = [Story.begin(rng) for rng in rngs], [planned(rng) for rng in rngs]
        drawn = []
        for story, plan in zip(stories, plans, strict=True):
            again = Story(story.place, story.look, story.state)
            drawn.append([again.clip(action, overlap if at else 1) for at, action in enumerate(plan)])
        true = [np.stack(clip) for clip in zip(*drawn, strict=True)]
        seen = [toy.through_vae(clip) for clip in true]
        told(f"{name}, {variant}, true films through the VAE", judge(stories, plans, seen, overlap), plans[0])
        psnr = round(float(np.mean([psnr_of(*pair) for pair in zip(true, seen, strict=True)])), 2)
        result[f"{name}, {variant}, PSNR"] = psnr
        print(f"{name}, {variant}: PSNR {psnr} dB", flush=True)
        for empty in (False, True)[: 2 if planned is away_and_back else 1]:
            clips = rendered(toy, variant, stories, plans, steps, empty=empty)
            shown = f"{name}, {variant}" + (", anchor empty from the third clip on" if empty else "")
            told(shown, judge(stories, plans, clips, overlap), plans[0])
    return result


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--stories", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="of the sampler")
    parser.add_argument("--write", type=Path, help="a JSON file for the results")
    asked = parser.parse_args(words)
    result: dict[str, object] = {"stories": asked.stories, "steps": asked.steps}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        runs = [pool.submit(evaluate, asked.models, each, asked.stories, asked.steps) for each in OVERLAP]
        for run in runs:
            result |= run.result()
    if asked.write:
        asked.write.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
