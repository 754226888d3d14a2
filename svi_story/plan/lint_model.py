"""Lints of a film that SVI renders: what its authors say, and what their users reported."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of
from svi_story.plan.model import Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from svi_story.enginespec import Training
    from svi_story.enginespec.sampling import WrittenLora
    from svi_story.fields import Loc
    from svi_story.plan.lint_film import Check, Found
    from svi_story.plan.model import FilmPlan, Shot
    from svi_story.storyboard.lints import LintName
    from svi_story.storyboard.source import BoardFile


LARGE = 1.5
"""Times the pixels that the model was trained at."""
FEWEST_WORDS, MOST_WORDS = 10, 350
HIGHEST_LIGHTX2V = 0.6

_PLACES = "the an? its? his her their my our this that".replace(" ", "|")
"""What follows "to" where something leads somewhere, and does nothing."""
_STARTS = re.compile(
    r"(?<!from )\b(?:(?:start|begin|beginn)(?:s|ing)?|started|began) to "
    rf"(?!(?:finish|end|{_PLACES})\b)\w+"
    r"|\b(?:starts|begins) (?!nothing|anything|something|everything|evening|morning)\w+ing\b"
    r"|\b(?:is|are) about to \w+|开始",
    re.IGNORECASE,
)
_DISTILLED = re.compile(r"lightx2v|lightning|distill|(?<!\d)[1-9][-_]?steps?(?![a-z])", re.IGNORECASE)
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts that leave no space between words."""


def _training(board: BoardFile, plan: FilmPlan) -> Training:
    """What the model was trained on that the user or the board asks for."""
    found = spec_of(plan.engine).training or spec_of(board.story.engine.name).training
    assert found is not None, "only an engine with a model has these lints"
    return found


def _long_pass(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    most = _training(board, plan).frames
    why = f"the model was trained at {most}, and colours shift in longer passes"
    cure = f"ask for {most} or fewer; with `duration` a longer clip becomes several passes"
    told: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        own = board.story.clips[index].frames is not None
        at: Loc = ("clips", index, "frames") if own else ("engine", "max_frames")
        frames = max(segment.frames for segment in shot.segments)
        if frames > most and at not in told:
            told.add(at)
            yield at, f"{frames} frames in one pass: {why}; {cure}"


def _aspect(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    size, training = plan.size, _training(board, plan)
    shape, standard = Fraction(size.width, size.height), Size(*training.size)
    if not training.shapes[0] <= shape <= training.shapes[1]:
        kind = "portrait" if shape < 1 else "square" if shape == 1 else "this shape"
        what = (
            f"{size} is far from the {standard} the model was trained at: {kind} weakens motion and how well "
            f"prompts are followed; use {standard}, or say more in the prompts"
        )
        yield ("resolution",), what


def _large_picture(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    size, standard = plan.size, Size(*_training(board, plan).size)
    times = size.width * size.height / (standard.width * standard.height)
    if times > LARGE:
        what = (
            f"{size} has {times:.1f} times the pixels the model was trained at: less consistent, and much "
            f"slower still; use {standard} and enlarge the film"
        )
        yield ("resolution",), what


def _frame_rate(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    fps, (slowest, fastest) = plan.fps, _training(board, plan).rates
    if not slowest <= fps <= fastest:
        fast = fps > fastest
        what = (
            f"the model makes motion for 15 or 16 frames a second, and at {fps} everything moves too "
            f"{'fast' if fast else 'slow'}; use 15"
        )
        if fast:
            what += f", with `cut: {{fps: {fps}}}` for a film at that rate"
        yield ("fps",), what


def _few_steps(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    steps = board.story.engine.steps
    if steps is not None and steps < _training(board, plan).steps and not all(map(_is_distilled, plan.shots)):
        count = "1 step" if steps == 1 else f"{steps} steps"
        what = f"{count} without a distilled LoRA leave noise and blur; use 50, or `preset: fast`"
        yield ("engine", "steps"), what


def _low_guidance(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    clips = board.story.clips
    told: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        guidance = shot.segments[0].sampler.guidance
        at: Loc = ("clips", index, "guidance") if clips[index].guidance else ("engine", "guidance")
        lowest = min(guidance.high, guidance.low)
        if lowest <= 1 and not _is_distilled(shot) and at not in told:
            told.add(at)
            what = (
                f"guidance {lowest:g} without a distilled LoRA: the negative prompt does nothing, the prompt "
                "little, and the subject snaps back to its pose; use 5.0, or `preset: fast`"
            )
            yield at, what


def _is_distilled(shot: Shot) -> bool:
    """Whether a clip is sampled with the preset's distillation, or with a LoRA named like one."""
    segment = shot.segments[0]
    return segment.sampler.distill is not None or any(
        _DISTILLED.search(lora.path.name) for lora in segment.loras
    )


def _lightx2v_high(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    told: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        segment = shot.segments[0]
        distill = segment.sampler.distill
        parts = [(f"`preset: {board.story.engine.preset}`", distill.high)] if distill else []
        parts += [(lora.path.name, lora.high) for lora in segment.loras if _DISTILLED.search(lora.path.name)]
        high = sum(strength for _, strength in parts)
        at = _last_distilled(board, index)
        if at and high > HIGHEST_LIGHTX2V and at not in told:
            told.add(at)
            sum_of = " + ".join(f"{strength:g} of {name}" for name, strength in parts)
            beside = f" ({sum_of})" if len(parts) > 1 else ""
            what = (
                f"a distilled LoRA at {high:g}{beside} on the high-noise expert slows motion down and lets "
                "the subject snap back; use high 0.5, low 1.0, or `preset: fast` alone"
            )
            yield at, what


def _last_distilled(board: BoardFile, index: int) -> Loc:
    """Where the distilled LoRA is written that comes to a clip last; empty where there is none."""
    story = board.story
    lists: list[tuple[Loc, tuple[WrittenLora, ...]]] = [
        (("clips", index, "loras"), story.clips[index].loras),
        (("engine", "loras"), story.engine.loras),
    ]
    for place, loras in lists:
        for number, lora in reversed(list(enumerate(loras))):
            if lora.high > 0 and _DISTILLED.search(lora.path):
                return (*place, number, "high")
    return ()


def _unused_distill(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    engine = board.story.engine
    if engine.distill and plan.shots[0].segments[0].sampler.distill is None:
        what = f"`preset: {engine.preset}` samples without distillation, these files are not used; see `fast`"
        yield ("engine", "distill"), what


def amount(text: str) -> int:
    """About how many words a text has: where there are no spaces, two characters count as one."""
    spaced = sum(any(map(str.isalnum, word)) for word in _UNSPACED.sub(" ", text).split())
    return spaced + (len(_UNSPACED.findall(text)) + 1) // 2


def _short_prompt(board: BoardFile, _plan: FilmPlan) -> Iterator[Found]:
    for index, clip in enumerate(board.story.clips):
        words = amount(clip.prompt)
        if words < FEWEST_WORDS:
            what = (
                f"{words} {'word' if words == 1 else 'words'}: short prompts let the reference win, and the "
                "subject snaps back to its pose; say who, where, what moves and how, in 40 to 80 words"
            )
            yield ("clips", index, "prompt"), what


def _long_prompt(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    for index, shot in enumerate(plan.shots):
        words = amount(shot.prompt)
        if words > MOST_WORDS:
            what = (
                f"about {words} words with the style, and the text encoder reads some {MOST_WORDS}: the rest "
                "is cut off; shorten it"
            )
            yield ("clips", index, "prompt"), what


def _starts_to(board: BoardFile, _plan: FilmPlan) -> Iterator[Found]:
    for index, clip in enumerate(board.story.clips):
        match = _STARTS.search(" ".join(clip.prompt.split()))
        if match:
            what = (
                f'"{match.group()}" is one instant, and the rest of the clip is left open; '
                'say what is going on: "is walking", not "starts to walk"'
            )
            yield ("clips", index, "prompt"), what


CHECKS: dict[LintName, Check] = {
    "aspect": _aspect,
    "few-steps": _few_steps,
    "frame-rate": _frame_rate,
    "large-picture": _large_picture,
    "lightx2v-high": _lightx2v_high,
    "long-pass": _long_pass,
    "long-prompt": _long_prompt,
    "low-guidance": _low_guidance,
    "short-prompt": _short_prompt,
    "starts-to": _starts_to,
    "unused-distill": _unused_distill,
}
