"""What does `doctor --smoke` measure on the toy: with the right set-up, and with wrong ones?

In each story the creature leaves, its place is empty, and it comes back. The clips are made by the engine's
own code, many stories at once (toy/evaluate.py), and judged by what the doctor prints: the share of the
colours which left that are back at the end.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "toy"))

import numpy as np
import torch
from common import Finding, Result, Table, finish, options, progress, workplace
from evaluate import SVI, Toy
from export import FILES, MODELS
from safetensors.torch import load_file, save_file
from world import COLOURS, Look, Story, prompt

from svi_story.render.smoke import BACK, RenderedClip, check_return, gone_colours, returned

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from common import Cell
    from world import Film

    from svi_story.enginespec.sampling import Variant

FIRST_SEED = 20_000
"""Of the stories: neither training's nor those of toy/evaluate.py."""
GREY = 127
"""The empty anchor, as the doctor's."""
ABOUT = (
    "*back*: the share of the colours that left with the creature which the later half of the last clip has; "
    "*warned*: of how many stories the doctor warns. The middle and both ends of the stories in which the "
    "creature left. *With an empty anchor* is the last clip again, as the doctor renders it."
)
MEANS = (
    "This is the toy: a creature of one colour before a still background. What is usual with Wan 2.2 on "
    "photographs is not known; there the picture has to be looked at."
)


def file(models: Path, stage: str) -> Path:
    """Where a trained stage was exported to."""
    return models / f"{FILES[stage]}.safetensors"


def swap(first: str, second: str) -> Callable[[Path], None]:
    """Exchange two files of a folder."""

    def change(models: Path) -> None:
        one, other = (file(models, stage) for stage in (first, second))
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """One change after the other."""

    def change(models: Path) -> None:
        for each in changes:
            each(models)

    return change


def no_loras(variant: Variant) -> Callable[[Path], None]:
    """Make a variant's LoRAs change nothing."""

    def change(models: Path) -> None:
        for expert in ("high", "low"):
            place = file(models, f"{variant}-{expert}")
            save_file({key: tensor * 0 for key, tensor in load_file(place).items()}, place)

    return change


class Case(NamedTuple):
    """A set-up."""

    name: str
    change: Callable[[Path], None] | None = None
    """What is done to the models."""
    anchor: str = ""
    """What the last clip has for its anchor, instead of the right one."""


def cases(variant: Variant) -> list[Case]:
    """The right set-up, and those that people get wrong."""
    other = "2.0" if variant == "2.0-pro" else "2.0-pro"
    pairs = both(*(swap(f"2.0-{expert}", f"2.0-pro-{expert}") for expert in ("high", "low")))
    return [
        Case("right"),
        Case("with an empty anchor", anchor="grey"),
        Case("with the empty place as the anchor", anchor="empty"),
        Case("with another creature as the anchor", anchor="other"),
        Case("without the SVI LoRAs", no_loras(variant)),
        Case(f"with the LoRAs of {other}", pairs),
        Case("LoRAs on the wrong experts", swap(f"{variant}-high", f"{variant}-low")),
        Case("experts swapped", swap("high", "low")),
    ]


class Measured(NamedTuple):
    """What the doctor finds of one story."""

    back: float
    warned: bool


def anchors_of(stories: Sequence[Story], kind: str) -> Film:
    """The pictures that the last clips are conditioned on, [stories, 64, 64, 3]."""
    right = np.concatenate([story.picture() for story in stories])
    if kind == "grey":
        return np.full_like(right, GREY)
    if kind == "empty":
        return np.concatenate([story.empty() for story in stories])
    if kind == "other":
        looks = [Look((story.look.colour + 3) % len(COLOURS), 1 - story.look.kind) for story in stories]
        others = [Story(story.place, look, story.state) for story, look in zip(stories, looks, strict=True)]
        return np.concatenate([story.picture() for story in others])
    return right


def measure(models: Path, variant: Variant, case: Case, count: int, steps: int) -> list[Measured]:
    """Render the stories with one set-up, and judge those in which the creature left."""
    rng = np.random.default_rng(FIRST_SEED)
    stories = [Story.begin(rng) for _ in range(count)]
    sides = [[str(side) for side in rng.choice(["left", "right"], size=2)] for _ in stories]
    actions = [[f"leave {out}", "empty", f"return {back}"] for out, back in sides]
    prompts = [[prompt(story[clip], rng) for story in actions] for clip in range(3)]
    anchor = anchors_of(stories, "")
    clips = Toy(models).chain(
        variant, [anchor, anchor, anchors_of(stories, case.anchor)], prompts, FIRST_SEED, steps
    )
    found = []
    for story in range(count):
        away, back = clips[1][story], clips[2][story]
        blind = RenderedClip({}, np.repeat(away[-1:], 2, 0))
        check = check_return(
            anchor[story], RenderedClip({}, away), RenderedClip({}, back), blind, judged=True
        )
        if "nothing has left" not in check.detail:
            gone = gone_colours(anchor[story], away[-1])
            found.append(Measured(returned(gone, away[-1], back), check.state == "warn"))
    return found


def row(variant: str, name: str, found: list[Measured], count: int) -> tuple[Cell, ...]:
    """A line of the table."""
    values, shares = [100 * each.back for each in found], (0, 0.1, 0.5, 0.9, 1)
    ends = [f"{np.quantile(values, share):.0f} %" if values else "-" for share in shares]
    return (
        variant,
        name,
        f"{len(found)} of {count}",
        *ends,
        f"{sum(each.warned for each in found)} of {len(found)}",
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--variants", nargs="+", choices=[*SVI], default=[*SVI])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the set-ups' names")
    parser.add_argument("--stories", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # so small a model is slower on several
    rows, right, wrong = [], [], []
    with workplace() as folder:
        for variant in chosen.variants:
            for number, case in enumerate(cases(variant)):
                if not any(part in case.name for part in chosen.only):
                    continue
                progress(f"{variant}, {case.name}")
                models = chosen.models
                if case.change:
                    models = shutil.copytree(chosen.models, folder / f"{variant}-{number}")
                    case.change(models)
                found = measure(models, variant, case, chosen.stories, chosen.steps)
                rows.append(row(variant, case.name, found, chosen.stories))
                if case.name == "right":
                    right += found
                elif case.anchor:
                    wrong += found
    columns = ("SVI", "set-up", "left", "least back", "10 %", "middle", "90 %", "most", "warned")
    shown = [f"{sum(each.warned for each in some)} of {len(some)}" for some in (right, wrong)]
    result = Result(
        name="smoke",
        question="what does `doctor --smoke` measure on the toy, with right and wrong set-ups?",
        settings={"stories": chosen.stories, "steps": chosen.steps, "threads": 1},
        tables=(Table("What is back", columns, tuple(rows)),),
        findings=(
            Finding(f"right set-ups that are warned of (less than {BACK:.0%} back)", shown[0]),
            Finding("wrong anchors that are warned of", shown[1]),
        ),
        notes=(ABOUT, MEANS),
    )
    finish(result, write=chosen.write)


if __name__ == "__main__":
    main()
