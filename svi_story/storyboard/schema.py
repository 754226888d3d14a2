"""The storyboard, version 1: what an author may write, as frozen models."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from svi_story.enginespec import DEFAULT, engine_names, spec_of, specs
from svi_story.enginespec.sampling import GuidanceField, LorasField, SamplingSettings, Steps
from svi_story.fields import (
    ClipDuration,
    FrameRate,
    Line,
    Part,
    Prompt,
    Seed,
    Text,
    format_path,
    format_value,
    wrong,
)
from svi_story.storyboard.cut_schema import CaptionField, CutSettings, SoundField, SoundsField, Transition
from svi_story.storyboard.rules import find_conflicts
from svi_story.storyboard.terms import size_problem

if TYPE_CHECKING:
    from collections.abc import Sequence


LintName = Literal[
    "aspect",
    "cropped-reference",
    "enlarged-reference",
    "few-steps",
    "frame-rate",
    "hurried-text",
    "large-picture",
    "lightx2v-high",
    "long-pass",
    "long-prompt",
    "low-guidance",
    "other-length",
    "overlapping-voices",
    "short-prompt",
    "starts-to",
    "unquoted-text",
    "unused-distill",
    "voice-cut-off",
]


class LintSettings(Part):
    """Warnings that the author has seen and accepts."""

    ignore: Annotated[tuple[LintName, ...], Field(strict=False)] = Field(
        (), examples=[["short-prompt"]], description="Names of the warnings to silence for this board."
    )


NOT_YET = frozenset(
    {
        "clips.end_frame",
        "clips.end_reference",
        "clips.start_video",
        "clips.video",
        "cut.loudness",
        "end_frame",
        "end_reference",
        "finish",
        "start_video",
        "video",
    }
)
"""Reserved fields that are not supported yet. A feature that arrives removes its names here."""

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
    "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，"
    "畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt that Wan 2.2 was tuned with, as its authors wrote it."""

SCHEMA_FILE = "storyboard.schema.json"
MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""A board's first line: editors look for the schema beside the board."""

SIDES = (16, 4096)
MOST_TAKES = 99

_SIZE_NAMES = {"480p": (832, 480), "720p": (1280, 720)}
_SIZE = re.compile("([0-9]{1,5})x([0-9]{1,5})")


class Resolution(Part):
    """The film's size in pixels; both sides are multiples of 16."""

    width: int = Field(ge=SIDES[0], le=SIDES[1], multiple_of=16, description="Width in pixels.")
    height: int = Field(ge=SIDES[0], le=SIDES[1], multiple_of=16, description="Height in pixels.")


def _resolution(value: object) -> Resolution:
    if isinstance(value, Resolution):
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and value in _SIZE_NAMES:
        width, height = _SIZE_NAMES[value]
    elif match:
        width, height = int(match[1]), int(match[2])
    else:
        raise wrong(size_problem(value))
    sides = [min(max((side + 8) // 16 * 16, SIDES[0]), SIDES[1]) for side in (width, height)]
    if sides != [width, height]:
        limits = f"multiples of 16 from {SIDES[0]} to {SIDES[1]}"
        raise wrong(f"{format_value(value)} is not supported: sides are {limits}; use {sides[0]}x{sides[1]}")
    return Resolution(width=width, height=height)


def _not_empty(clips: tuple[Clip, ...]) -> tuple[Clip, ...]:
    if not clips:  # pydantic's min_length counts valid clips only, so invalid ones would be called missing
        raise wrong("is empty; add a clip, as `- prompt: ...`")
    return clips


def _version(value: object) -> object:
    if type(value) is not int:
        raise wrong(f"{format_value(value)} is not a version; write `version: 1`")
    if value != 1:
        raise wrong(f"{format_value(value)} is a version this svi-story cannot read; write `version: 1`")
    return value


VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Variables = Annotated[
    dict[VariableName, Text],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        }
    ),
]
ClipId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

if TYPE_CHECKING:

    class EngineSettings(SamplingSettings):
        """The engine that renders the frames, and its settings. Omitted ones come from the preset."""

        name: str = DEFAULT
else:
    # The fields of all engines: `rules` reports those that belong to another engine than the board's.
    EngineSettings = create_model(
        "EngineSettings",
        __doc__="The engine that renders the frames, and its settings. Omitted ones come from the preset.",
        __base__=(*dict.fromkeys(spec.settings for spec in reversed(specs())),),
        __module__=__name__,
        name=(
            Literal[engine_names()],
            Field(DEFAULT, description="; ".join(f"{spec.name} {spec.summary}" for spec in specs()) + "."),
        ),
    )


class Clip(Part):
    """One entry of `clips`."""

    id: ClipId | None = Field(
        None, examples=["window"], description="The clip's name. Default: clip-01, clip-02, ..."
    )
    prompt: Prompt = Field(
        examples=["A tabby cat sits by the window."], description="What is seen and how it moves."
    )
    duration: ClipDuration | None = Field(
        None,
        examples=["5s", 2.5, "voice"],
        description="The length that the clip adds to the film; a bare number is seconds. voice: the "
        "shortest length that is not shorter than its voice. Not with `frames`.",
    )
    frames: Annotated[int, Field(ge=5)] | None = Field(
        None, examples=[81], description="Frames of one model pass, 4k+1. Default: engine.max_frames."
    )
    seed: Seed | None = Field(
        None,
        examples=[1234],
        description="The clip's seed. Default: the board's + 42 for each clip before it in its chain.",
    )
    takes: Annotated[int, Field(ge=1, le=MOST_TAKES)] = Field(
        1, examples=[3], description="Versions of the clip to render, which differ by their seeds."
    )
    pick: Annotated[int, Field(ge=1, le=MOST_TAKES)] = Field(
        1, examples=[2], description="The take that the film uses and that the next clip continues from."
    )
    guidance: GuidanceField | None = Field(
        None, examples=[6.0], description="As engine.guidance, for this clip only."
    )
    steps: Steps | None = Field(None, examples=[30], description="As engine.steps, for this clip only.")
    negative_prompt: Text | None = Field(
        None,
        examples=["blur, text, extra fingers"],
        description="What the model should avoid in this clip. Default: the board's.",
    )
    transition: Transition | None = Field(
        None,
        examples=["cut", {"fade": "0.5s"}, {"dip": "1s"}],
        description="How it follows the previous clip: continue (default), cut, {fade: 0.5s} for a "
        "cross-fade, or {dip: 1s} through black.",
    )
    reference: Line | None = Field(
        None,
        examples=["images/street.jpg"],
        description="A new identity anchor from here on; needs a cut or a fade. Relative to the board.",
    )
    loras: LorasField = Field(
        (),
        examples=[[{"path": "loras/rain.safetensors", "low": 0.5}]],
        description="LoRAs for this clip, besides the board's.",
    )
    caption: CaptionField | None = Field(
        None,
        examples=["It has been raining since Tuesday.", {"text": "Since Tuesday.", "from": "1s", "to": "3s"}],
        description="Text shown during the clip, or a part of it. How it is shown: cut.captions.",
    )
    voice: SoundField | None = Field(
        None,
        examples=["voices/01.wav"],
        description="A voice that starts at the clip's first frame; the music is ducked under it.",
    )
    sounds: SoundsField = Field(
        (),
        examples=[["sounds/rain.wav"]],
        description="Other sounds that start at the clip's first frame.",
    )


class Storyboard(Part):
    """A storyboard, version 1: one film."""

    version: Annotated[Literal[1], BeforeValidator(_version)] = Field(
        examples=[1], description="The version of this format."
    )
    title: Line | None = Field(
        None, examples=["Rain on the window"], description="The film's title. Default: the file's name."
    )
    let: Variables = Field(
        default_factory=dict,
        examples=[{"hero": "an orange tabby cat with a white bib"}],
        description="Variables: `{hero}` in prompts, negative prompts, style, title, captions and cards "
        "becomes this text.",
    )
    reference: Line = Field(
        examples=["images/cat.jpg"],
        description="The film's first frame and its identity anchor: an image, relative to the board.",
    )
    resolution: (
        Annotated[
            Resolution,
            PlainValidator(_resolution),
            WithJsonSchema({"type": "string", "pattern": "^(480p|720p|[0-9]{2,4}x[0-9]{2,4})$"}),
        ]
        | None
    ) = Field(
        None,
        examples=["832x480", "720p"],
        description="Width x height in multiples of 16, or 480p or 720p. Default: the preset's, 832x480.",
    )
    fps: FrameRate = Field(
        Fraction(15),
        examples=[15, "24000/1001"],
        json_schema_extra={"default": 15},
        description="Frames per second when played: 1 to 240; fractions like 24000/1001 too.",
    )
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop", description="How a reference image of another aspect ratio is fitted to the resolution."
    )
    seed: Seed = Field(0, description="The first clip's seed; the others are counted from it.")
    style: Text = Field(
        "", examples=["35mm film, soft window light"], description="Appended to every prompt, after a space."
    )
    negative_prompt: Text = Field(
        WAN_NEGATIVE_PROMPT,
        description="What the model should avoid. Default: the one of Wan 2.2's authors.",
    )
    allow_repeated_seeds: bool = Field(
        default=False, description="Allow segments of one chain to share a seed; they tend to look alike."
    )
    engine: EngineSettings = Field(
        default_factory=lambda: EngineSettings(),  # noqa: PLW0108 - it gets its fields at run time
        examples=[{"name": "svi"}],
        description="The engine that renders the frames, and its settings.",
    )
    clips: Annotated[tuple[Clip, ...], Field(strict=False), AfterValidator(_not_empty)] = Field(
        json_schema_extra={"minItems": 1},
        examples=[[{"prompt": "A tabby cat sits by the window."}]],
        description="The clips, in the order of the film.",
    )
    cut: CutSettings = Field(
        default_factory=CutSettings, examples=[{"crf": 18}], description="Settings of the finished film."
    )
    same_scene: bool | None = Field(
        None,
        examples=[True],
        description="Whether the film keeps its scene and light, so that the review warns of colours far "
        "from the reference. Default: where the prompts are nearly alike.",
    )
    lint: LintSettings = Field(
        default_factory=LintSettings,
        examples=[{"ignore": ["short-prompt"]}],
        description="Which warnings of `validate` and `plan` do not apply to this board.",
    )

    @property
    def rate(self) -> Fraction:
        """Frames per second: as written, otherwise the engine's default."""
        return self.fps if "fps" in self.model_fields_set else spec_of(self.engine.name).fps

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        found = tuple(find_conflicts(self, resolved_ids(self.clips)))
        if found:
            what = "; ".join(f"{format_path(each.loc)}: {each.text()}" for each in found)
            raise PydanticCustomError("conflict", "{what}", {"what": what, "conflicts": found})
        return self


def resolved_ids(clips: Sequence[Clip]) -> tuple[str, ...]:
    """Every clip's id."""
    return tuple(clip.id or default_id(index) for index, clip in enumerate(clips))


def default_id(index: int) -> str:
    """The id of a clip without one. Independent of the number of clips, so that adding one changes no id."""
    return f"clip-{index + 1:02d}"


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a storyboard, with descriptions."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": draft, "title": "svi-story storyboard", **_for_authors(Storyboard.model_json_schema())}


def _for_authors(node: Any) -> Any:
    """The schema without pydantic's titles and without the nulls that stand for omitted fields."""
    if isinstance(node, list):
        return [_for_authors(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: _for_authors(value)
        for key, value in node.items()
        if not (key == "title" and isinstance(value, str)) and not (key == "default" and value is None)
    }
    kinds = [kind for kind in kept.get("anyOf", []) if kind != {"type": "null"}]
    if "anyOf" in kept and len(kinds) == 1:
        del kept["anyOf"]
        return {**kinds[0], **kept}
    return {**kept, "anyOf": kinds} if "anyOf" in kept else kept
