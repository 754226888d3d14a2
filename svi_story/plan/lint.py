"""Lints: warnings about known mistakes, before GPU time is spent. Never an error."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import TYPE_CHECKING

from svi_story.commands import suggest
from svi_story.enginespec import spec_of
from svi_story.plan.model import Lint, Size
from svi_story.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from svi_story.enginespec import Training
    from svi_story.enginespec.sampling import LoraSettings
    from svi_story.fields import Loc
    from svi_story.plan.model import Anchor, Card, FilmPlan, Shot
    from svi_story.storyboard.schema import LintName
    from svi_story.storyboard.source import BoardFile

    Found = tuple[Loc, str]
    """The place, and what is wrong there."""
    Check = Callable[[BoardFile, FilmPlan], Iterator[Found]]


LENGTH_TOLERANCE = Fraction(1, 10)
READABLE = 20
"""Characters per second that a viewer can read; a wide one (Chinese, Japanese, Korean) counts as two."""
SHORTEST_TEXT = 1
"""Seconds."""


def _other_length(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    fps, spec = plan.fps, spec_of(plan.engine)
    grid = spec_of(board.story.engine.name).grid if spec.follows_board else spec.grid
    for index, shot in enumerate(plan.shots):
        written = isinstance(board.story.clips[index].duration, Fraction)
        if written and abs(shot.frames - shot.asked_frames) > shot.asked_frames * LENGTH_TOLERANCE:
            what = (
                f"asks for {_seconds(shot.asked_frames / fps)}, but the clip will have "
                f"{_seconds(shot.frames / fps)} ({shot.frames} frames: lengths come in steps of {grid} "
                f"frames); write {_seconds(shot.frames / fps).replace(' ', '')}"
            )
            yield ("clips", index, "duration"), what


def _hurried_text(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    cut, fps = plan.cut, plan.fps
    cards: tuple[tuple[str, Card | None], ...] = (("title_card", cut.title_card), ("end_card", cut.end_card))
    texts: list[tuple[Loc, str, Fraction]] = [
        (("cut", name), card.text, card.frames / fps) for name, card in cards if card
    ]
    fades_out = [*(shot.fade for shot in plan.shots[1:]), 0]
    if cut.burnt or cut.soft:
        texts += [
            (("clips", index, "caption"), shot.caption, _caption_frames(shot, after) / fps)
            for index, (shot, after) in enumerate(zip(plan.shots, fades_out, strict=True))
        ]
    for at, text, seconds in texts:
        needs = max(Fraction(_width(text), READABLE), Fraction(SHORTEST_TEXT))
        if text and seconds < needs:
            what = (
                f"{len(text)} characters are shown for {_seconds(seconds)}, but take about {_seconds(needs)} "
                "to read; shorten the text or show it longer"
            )
            yield at, what


def _caption_frames(shot: Shot, fade_out: int) -> int:
    first, stop = shot.caption_frames or (0, shot.frames)
    return max(min(stop, shot.frames - fade_out) - first, 0)


def _width(text: str) -> int:
    """The number of visible characters; wide ones count as two."""
    drawn = (char for char in text if not char.isspace() and not unicodedata.combining(char))
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in drawn)


def _voice_cut_off(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    end = Fraction(plan.frames) / plan.cut.fps
    for at, _, stop in _voices(plan):
        if stop > end + Fraction(1, 10):
            what = (
                f"the voice goes on for {_seconds(stop - end)} after the film's end, where it is cut off; "
                "give the clips more time, start it earlier, or add an end card"
            )
            yield at, what


def _overlapping_voices(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    before: tuple[Loc, Fraction, Fraction] | None = None
    for at, start, stop in _voices(plan):
        if before and before[2] > start + Fraction(1, 10):
            who = plan.shots[int(before[0][1])].id
            what = (
                f"the voice of clip {who} is still speaking, for {_seconds(before[2] - start)}; give that "
                "clip more time, or let this one `start` later"
            )
            yield at, what
        before = (at, start, stop) if before is None or stop > before[2] else before


def _voices(plan: FilmPlan) -> Iterator[tuple[Loc, Fraction, Fraction]]:
    """Every audible voice: its place on the board, and its start and end in the film in seconds."""
    fps, title = plan.fps, plan.cut.title_card
    frame = title.frames if title else 0
    for index, shot in enumerate(plan.shots):
        frame -= shot.fade
        for voice in (each for each in shot.voices if each.volume > 0):
            yield ("clips", index, "voice"), frame / fps + voice.start, frame / fps + voice.end
        frame += shot.frames


def _seconds(seconds: Fraction) -> str:
    return f"{float(seconds):.2f}".rstrip("0").rstrip(".") + " s"


LARGE = 1.5
"""Multiple of the pixel count that the model was trained at."""
FEWEST_WORDS, MOST_WORDS = 10, 350
HIGHEST_LIGHTX2V = 0.6

_PLACES = "the an? its? his her their my our this that".replace(" ", "|")
"""Words after "to" that make it a direction, not an action."""
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
    """What the model of the user's engine, or of the board's, was trained on."""
    found = spec_of(plan.engine).training or spec_of(board.story.engine.name).training
    assert found is not None, "only an engine with a model has these lints"
    return found


def _long_pass(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    most = _training(board, plan).frames
    why = f"the model was trained at {most}, and colours shift in longer passes"
    remedy = f"ask for {most} or fewer; with `duration` a longer clip becomes several passes"
    reported: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        own = board.story.clips[index].frames is not None
        at: Loc = ("clips", index, "frames") if own else ("engine", "max_frames")
        frames = max(segment.frames for segment in shot.segments)
        if frames > most and at not in reported:
            reported.add(at)
            yield at, f"{frames} frames in one pass: {why}; {remedy}"


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


MOST_ENLARGED, MOST_CROPPED = Fraction(3, 2), Fraction(1, 4)


def _references(board: BoardFile, plan: FilmPlan) -> Iterator[tuple[Loc, Anchor, Fraction]]:
    """Every reference whose size is known, once, with how many times it is enlarged."""
    reported: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        anchor = shot.segments[0].anchor
        at: Loc = ("clips", index, "reference") if board.story.clips[index].reference else ("reference",)
        if anchor.source is None or at in reported:
            continue
        reported.add(at)
        wide = Fraction(anchor.size.width, anchor.source.width)
        high = Fraction(anchor.size.height, anchor.source.height)
        yield at, anchor, min(wide, high) if anchor.fit == "pad" else max(wide, high)


def _enlarged_reference(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    for at, anchor, scale in _references(board, plan):
        if scale > MOST_ENLARGED:
            what = (
                f"the picture has {anchor.source} pixels and is enlarged {float(scale):.1f} times: the film "
                f"starts soft and stays so; use a picture of {anchor.size} or more"
            )
            yield at, what


def _cropped_reference(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    for at, anchor, scale in _references(board, plan):
        if anchor.fit != "crop" or anchor.source is None:
            continue
        size, source = anchor.size, anchor.source
        lost = 1 - Fraction(size.width * size.height) / (scale**2 * source.width * source.height)
        if lost > MOST_CROPPED:
            command = suggest("preview", path=board.path)
            what = (
                f"{round(100 * lost)} % of the picture ({source}) is cut off to make it {size}; see what is "
                f"left with `{command}`, choose a `resolution` of its shape, or set `fit: pad`"
            )
            yield at, what


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
            f"the model renders motion for 15 or 16 frames per second, so at {fps} everything moves too "
            f"{'fast' if fast else 'slow'}; use 15"
        )
        if fast:
            what += f", with `cut: {{fps: {fps}}}` for a film at that rate"
        yield ("fps",), what


def _few_steps(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    fewest = _training(board, plan).steps
    reported: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        own = board.story.clips[index].steps
        steps, at = own or board.story.engine.steps, ("clips", index, "steps") if own else ("engine", "steps")
        if steps is not None and steps < fewest and not _is_distilled(shot) and at not in reported:
            reported.add(at)
            count = counted(steps, "step")
            yield at, f"{count} without a distilled LoRA leave noise and blur; use 50, or `preset: fast`"


def _low_guidance(board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    clips = board.story.clips
    reported: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        guidance = shot.segments[0].sampler.guidance
        at: Loc = ("clips", index, "guidance") if clips[index].guidance else ("engine", "guidance")
        lowest = min(guidance.high, guidance.low)
        if lowest <= 1 and not _is_distilled(shot) and at not in reported:
            reported.add(at)
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
    reported: set[Loc] = set()
    for index, shot in enumerate(plan.shots):
        segment = shot.segments[0]
        distill = segment.sampler.distill
        parts = [(f"`preset: {board.story.engine.preset}`", distill.high)] if distill else []
        parts += [(lora.path.name, lora.high) for lora in segment.loras if _DISTILLED.search(lora.path.name)]
        high = sum(strength for _, strength in parts)
        at = _last_distilled(board, index)
        if at and high > HIGHEST_LIGHTX2V and at not in reported:
            reported.add(at)
            sum_of = " + ".join(f"{strength:g} of {name}" for name, strength in parts)
            beside = f" ({sum_of})" if len(parts) > 1 else ""
            what = (
                f"a distilled LoRA at {high:g}{beside} on the high-noise expert slows motion down and lets "
                "the subject snap back; use high 0.5, low 1.0, or `preset: fast` alone"
            )
            yield at, what


def _last_distilled(board: BoardFile, index: int) -> Loc:
    """The place of the last distilled LoRA that a clip uses; empty when there is none."""
    story = board.story
    lists: list[tuple[Loc, tuple[LoraSettings, ...]]] = [
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
        what = (
            f"`preset: {engine.preset}` samples without distillation, so these files are unused; see `fast`"
        )
        yield ("engine", "distill"), what


def count_words(text: str) -> int:
    """About how many words a text has; in scripts without spaces, two characters count as one."""
    spaced = sum(any(char.isalnum() for char in word) for word in _UNSPACED.sub(" ", text).split())
    return spaced + (len(_UNSPACED.findall(text)) + 1) // 2


def _short_prompt(board: BoardFile, _plan: FilmPlan) -> Iterator[Found]:
    for index, clip in enumerate(board.story.clips):
        words = count_words(clip.prompt)
        if words < FEWEST_WORDS:
            what = (
                f"{words} {'word' if words == 1 else 'words'}: short prompts let the reference win, and the "
                "subject snaps back to its pose; describe who, where, what moves and how, in 40 to 80 words"
            )
            yield ("clips", index, "prompt"), what


def _long_prompt(_board: BoardFile, plan: FilmPlan) -> Iterator[Found]:
    for index, shot in enumerate(plan.shots):
        words = count_words(shot.prompt)
        if words > MOST_WORDS:
            what = (
                f"about {words} words with the style; the encoder reads about {MOST_WORDS}, and the rest "
                "is cut off; shorten it"
            )
            yield ("clips", index, "prompt"), what


def _starts_to(board: BoardFile, _plan: FilmPlan) -> Iterator[Found]:
    for index, clip in enumerate(board.story.clips):
        match = _STARTS.search(" ".join(clip.prompt.split()))
        if match:
            what = (
                f'"{match.group()}" is one instant and leaves the rest of the clip open; '
                'describe what is going on: "is walking", not "starts to walk"'
            )
            yield ("clips", index, "prompt"), what


def _unquoted_text(board: BoardFile, _plan: FilmPlan) -> Iterator[Found]:
    yield from board.unquoted


FILM_CHECKS: dict[LintName, Check] = {
    "hurried-text": _hurried_text,
    "other-length": _other_length,
    "overlapping-voices": _overlapping_voices,
    "unquoted-text": _unquoted_text,
    "voice-cut-off": _voice_cut_off,
}
"""Lints of any film."""

MODEL_CHECKS: dict[LintName, Check] = {
    "aspect": _aspect,
    "cropped-reference": _cropped_reference,
    "enlarged-reference": _enlarged_reference,
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
"""Lints of a film that a trained model renders; an engine's spec names those that concern it."""


def lints(board: BoardFile, plan: FilmPlan) -> tuple[Lint, ...]:
    """All warnings that the board does not ignore, in the order of its lines.

    Lints of a model apply when the board's engine or the one that the user asked for names them.
    """
    of_engines = spec_of(board.story.engine.name).lints | spec_of(plan.engine).lints
    model = {name: check for name, check in MODEL_CHECKS.items() if name in of_engines}
    found = [
        Lint(name, board.problem(*each))
        for name, check in (FILM_CHECKS | model).items()
        if name not in board.story.lint.ignore
        for each in check(board, plan)
    ]
    return tuple(sorted(found, key=lambda lint: lint.problem.line))
