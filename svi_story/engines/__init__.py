"""Who makes it: one contract, several engines. Nothing heavy is imported before an engine is entered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.errors import InputError

if TYPE_CHECKING:
    from svi_story.engines.base import Engine


def create(name: str) -> Engine:
    """The engine of that name, not entered yet. Raises InputError when this machine cannot have it."""
    if name == "animatic":
        from svi_story.engines.animatic import Animatic

        return Animatic()
    raise InputError(
        f"the {name} engine is not part of this version yet; for a preview use --engine animatic"
    )
