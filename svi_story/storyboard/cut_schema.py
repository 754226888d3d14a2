"""The parts of the schema about the finished film: sound, text on the picture, transitions, encoding."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    Tag,
    WithJsonSchema,
)
from pydantic_core import CoreSchema  # noqa: TC002 - pydantic reads the annotation

from svi_story.fields import (
    Delay,
    Duration,
    FrameRate,
    Line,
    Part,
    Text,
    format_value,
    nearest,
    short_text,
    wrong,
)

X264_PRESETS = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow"),
)
SVT_PRESETS = range(14)
LARGEST_X264_CRF = 51

LONGEST_CAPTION = 300
LONGEST_CARD = 600
CARD_SECONDS = Fraction(2)

Caption = Annotated[
    Text,
    AfterValidator(short_text(LONGEST_CAPTION)),
    WithJsonSchema({"type": "string", "pattern": r"\S", "maxLength": LONGEST_CAPTION}),
]
CardText = Annotated[
    Text,
    AfterValidator(short_text(LONGEST_CARD)),
    WithJsonSchema({"type": "string", "pattern": r"\S", "maxLength": LONGEST_CARD}),
]
Volume = Annotated[float, Field(ge=0, le=10)]


class ShorthandPart(Part):
    """A part that may be written as the value of its first field alone."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [mapping["properties"][next(iter(cls.model_fields))], mapping]}


def _preset(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong(f"{format_value(value)} is not a preset; write medium, or for av1 a number, as 8")
    return value


PresetField = Annotated[
    str | int,
    PlainValidator(_preset),
    WithJsonSchema(
        {"anyOf": [{"enum": [*X264_PRESETS]}, {"type": "integer", "minimum": 0, "maximum": SVT_PRESETS[-1]}]}
    ),
]


def _shorthand(field: str) -> BeforeValidator:
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


class TimedCaption(Part):
    """A caption for a part of its clip."""

    text: Caption = Field(examples=["It has been raining since Tuesday."], description="The text.")
    from_: Delay = Field(
        Fraction(0),
        alias="from",
        json_schema_extra={"default": 0},
        examples=["1s"],
        description="When it appears, after the clip's first frame.",
    )
    to: Duration | None = Field(
        None, examples=["3s"], description="When it disappears. Default: with the clip."
    )


CaptionField = Annotated[
    Annotated[Caption, Tag("<text>")] | Annotated[TimedCaption, Tag("<timed>")],
    Discriminator(lambda value: "<timed>" if isinstance(value, dict | TimedCaption) else "<text>"),
]


class SoundSettings(ShorthandPart):
    """A recording that belongs to a clip; may be written as its path alone."""

    path: Line = Field(examples=["voices/01.wav"], description="An audio file, relative to the board.")
    volume: Volume = Field(1.0, description="1.0: as recorded.")
    start: Delay = Field(
        Fraction(0),
        json_schema_extra={"default": 0},
        examples=["0.5s"],
        description="Delay after the clip's first frame.",
    )
    fade_in: Delay = Field(
        Fraction(0), json_schema_extra={"default": 0}, examples=["0.1s"], description="From silence."
    )
    fade_out: Delay = Field(
        Fraction(0), json_schema_extra={"default": 0}, examples=["0.1s"], description="To silence."
    )


class MusicSettings(ShorthandPart):
    """The music under the whole film, including its cards; may be written as its path alone."""

    path: Line = Field(examples=["music/rain.mp3"], description="An audio file, relative to the board.")
    volume: Volume = Field(1.0, examples=[0.8], description="1.0: as recorded.")
    fade_in: Delay = Field(
        Fraction(0), json_schema_extra={"default": 0}, examples=["1s"], description="From silence."
    )
    fade_out: Delay = Field(
        Fraction(0),
        json_schema_extra={"default": 0},
        examples=["2s"],
        description="To silence, at the film's end.",
    )
    loop: bool = Field(
        default=True, description="Repeat it when it is shorter than the film; a longer one is cut."
    )
    duck: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="Factor on its volume under a voice; 1.0: no ducking."
    )


class CardSettings(ShorthandPart):
    """Text on black, before or after the film; may be written as its text alone."""

    text: CardText = Field(examples=["Rain on the window"], description="The text.")
    duration: Duration = Field(
        CARD_SECONDS,
        json_schema_extra={"default": int(CARD_SECONDS)},
        examples=["2s"],
        description="Added to the film's length.",
    )


SoundField = Annotated[SoundSettings, _shorthand("path")]
SoundsField = Annotated[tuple[SoundField, ...], Field(strict=False)]


class CutSettings(Part):
    """How the film is assembled from its clips. Changing it re-renders no clip."""

    audio: Annotated[MusicSettings, _shorthand("path")] | None = Field(
        None,
        examples=[{"path": "music/rain.mp3", "volume": 0.8, "fade_in": "1s", "fade_out": "2s"}],
        description="The film's music.",
    )
    captions: Literal["burn", "srt", "both", "off"] = Field(
        "burn",
        description="How the clips' captions are shown: drawn into the picture; a subtitle track and an .srt "
        "file beside the film; both; or not at all.",
    )
    title_card: Annotated[CardSettings, _shorthand("text")] | None = Field(
        None,
        examples=[{"text": "Rain on the window", "duration": "2s"}],
        description="Text on black before the film.",
    )
    end_card: Annotated[CardSettings, _shorthand("text")] | None = Field(
        None, examples=["The end"], description="Text on black after the film."
    )
    fade_in: Duration | None = Field(
        None,
        examples=["0.5s"],
        description="Fade from black at the first clip, after the title card. Default: none.",
    )
    fade_out: Duration | None = Field(
        None,
        examples=["1s"],
        description="Fade to black at the last clip, before the end card. Default: none.",
    )
    codec: Literal["h264", "av1"] = Field(
        "h264", description="h264 plays everywhere; av1 is smaller and slower to encode."
    )
    crf: int | None = Field(
        None,
        ge=0,
        le=63,
        examples=[18],
        description="Quality of the encoded film: lower is better and larger. Default: 18 for h264 (0 to "
        "51; 0 is lossless, which few players show), 30 for av1 (1 to 63).",
    )
    preset: PresetField | None = Field(
        None,
        examples=["medium", 8],
        description="The encoder's trade of time for quality: ultrafast to veryslow for h264 (default "
        "medium), 13 (quick) to 0 for av1 (default 8).",
    )
    fps: FrameRate | None = Field(
        None,
        examples=[30],
        description="The film's frame rate when it is not the board's: frames are repeated, never dropped "
        "or interpolated. Default: the board's.",
    )


class Fade(Part):
    """A cross-fade from the previous clip into a new chain."""

    fade: Duration = Field(examples=["0.5s"], description="The length of the cross-fade, as 0.5s.")


class Dip(Part):
    """Through black into a new chain; the clips do not overlap."""

    dip: Duration = Field(
        examples=["1s"],
        description="Half of it at the end of the previous clip, half at this one's start.",
    )


def _kind_of_transition(value: object) -> str:
    names = value if isinstance(value, dict) else ()
    if isinstance(value, Dip) or any(nearest(str(name), ("fade", "dip")) == "dip" for name in names):
        return "<dip>"
    return "<fade>" if isinstance(value, dict | Fade) else "<word>"


Transition = Annotated[
    Annotated[Literal["continue", "cut"], Tag("<word>")]
    | Annotated[Fade, Tag("<fade>")]
    | Annotated[Dip, Tag("<dip>")],
    Discriminator(_kind_of_transition),
]
