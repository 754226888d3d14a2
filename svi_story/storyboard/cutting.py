"""What an author may write about the finished film: sound, words on the picture, fades, encoding."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import CoreSchema  # noqa: TC002 - pydantic reads the annotation

from svi_story.fields import Duration, FrameRate, Line, Part, Text, Wait, short_text, shown, wrong

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


class OrWord(Part):
    """A part that may be written as one word: the value of its first field."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        whole = handler.resolve_ref_schema(handler(core))
        word = next(iter(cls.model_fields))
        return {"anyOf": [whole["properties"][word], whole]}


def _preset(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise wrong(f"{shown(value)} is no preset; write medium, or for av1 a number, as 8")
    return value


WrittenPreset = Annotated[
    str | int,
    PlainValidator(_preset),
    WithJsonSchema(
        {"anyOf": [{"enum": [*X264_PRESETS]}, {"type": "integer", "minimum": 0, "maximum": SVT_PRESETS[-1]}]}
    ),
]


def _spread(field: str) -> BeforeValidator:
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


class Sound(OrWord):
    """A recording that belongs to a clip. A file name alone will do."""

    path: Line = Field(examples=["voices/01.wav"], description="An audio file, relative to the board.")
    volume: Volume = Field(1.0, description="1.0: as recorded.")
    start: Wait = Field(
        Fraction(0),
        json_schema_extra={"default": 0},
        examples=["0.5s"],
        description="How long after the clip's first frame it starts.",
    )
    fade_in: Wait = Field(
        Fraction(0), json_schema_extra={"default": 0}, examples=["0.1s"], description="From silence."
    )
    fade_out: Wait = Field(
        Fraction(0), json_schema_extra={"default": 0}, examples=["0.1s"], description="To silence."
    )


class Music(OrWord):
    """The music bed under the whole film, cards included. A file name alone will do."""

    path: Line = Field(examples=["music/rain.mp3"], description="An audio file, relative to the board.")
    volume: Volume = Field(1.0, examples=[0.8], description="1.0: as recorded.")
    fade_in: Wait = Field(
        Fraction(0), json_schema_extra={"default": 0}, examples=["1s"], description="From silence."
    )
    fade_out: Wait = Field(
        Fraction(0),
        json_schema_extra={"default": 0},
        examples=["2s"],
        description="To silence, at the film's end.",
    )
    loop: bool = Field(
        default=True, description="Start again when it is shorter than the film; a longer one is cut."
    )
    duck: Annotated[float, Field(ge=0, le=1)] = Field(
        0.3, description="What is left of its volume under a voice; 1.0: it does not duck."
    )


class Card(OrWord):
    """Text on black, before or after the film. The text alone will do."""

    text: CardText = Field(examples=["Rain on the window"], description="What it says.")
    duration: Duration = Field(
        CARD_SECONDS,
        json_schema_extra={"default": int(CARD_SECONDS)},
        examples=["2s"],
        description="How long it is seen; added to the film's length.",
    )


WrittenSound = Annotated[Sound, _spread("path")]
Sounds = Annotated[tuple[WrittenSound, ...], Field(strict=False)]


class CutSettings(Part):
    """How the film is put together. None of it makes a frame of a clip anew."""

    audio: Annotated[Music, _spread("path")] | None = Field(
        None,
        examples=[{"path": "music/rain.mp3", "volume": 0.8, "fade_in": "1s", "fade_out": "2s"}],
        description="The music bed.",
    )
    captions: Literal["burn", "srt", "both", "off"] = Field(
        "burn",
        description="Where the clips' captions go: drawn into the picture; a soft track and an .srt file "
        "beside the film; both; or nowhere.",
    )
    title_card: Annotated[Card, _spread("text")] | None = Field(
        None,
        examples=[{"text": "Rain on the window", "duration": "2s"}],
        description="Text on black before the film.",
    )
    end_card: Annotated[Card, _spread("text")] | None = Field(
        None, examples=["The end"], description="Text on black after the film."
    )
    fade_in: Duration | None = Field(
        None,
        examples=["0.5s"],
        description="The first clip comes out of black, after the title card. Default: it does not.",
    )
    fade_out: Duration | None = Field(
        None,
        examples=["1s"],
        description="The last clip goes into black, before the end card. Default: it does not.",
    )
    codec: Literal["h264", "av1"] = Field(
        "h264", description="h264 plays everywhere; av1 is smaller and slower to make."
    )
    crf: int | None = Field(
        None,
        ge=0,
        le=63,
        examples=[18],
        description="Quality of the encoded film: lower is better and larger. Default: 18 for h264 (0 to "
        "51; 0 is lossless, which few players show), 30 for av1 (1 to 63).",
    )
    preset: WrittenPreset | None = Field(
        None,
        examples=["medium", 8],
        description="How thoroughly the encoder works: ultrafast to veryslow for h264 (default medium), 13 "
        "(quick) to 0 for av1 (default 8).",
    )
    fps: FrameRate | None = Field(
        None,
        examples=[30],
        description="The film's frame rate when it is not the board's: frames are repeated, none is left "
        "out or made up. Default: the board's.",
    )
