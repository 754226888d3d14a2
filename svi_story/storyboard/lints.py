"""The names of what `svi_story.plan.lint` warns of, and how a board silences them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from svi_story.fields import Part

LintName = Literal[
    "aspect",
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
    "unused-distill",
    "voice-cut-off",
]


class LintSettings(Part):
    """What the author was warned of and means to do all the same."""

    ignore: Annotated[tuple[LintName, ...], Field(strict=False)] = Field(
        (), examples=[["short-prompt"]], description="Warnings that are not given for this board, by name."
    )
