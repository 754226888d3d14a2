"""Stable Video Infinity on Wan 2.2 I2V A14B."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from svi_story.errors import InputError

if TYPE_CHECKING:
    from svi_story.engines import Digest, EngineOptions, Keep
    from svi_story.engines.svi.engine import Svi
    from svi_story.events import Reporter

NEEDS = ("torch", "diffusers", "transformers", "ftfy")


def open_engine(options: EngineOptions, digest: Digest, keep: Keep, report: Reporter) -> Svi:
    """The engine, not entered yet. Raises InputError when a package is missing."""
    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        what = f"the svi engine needs {', '.join(missing)}: pip install 'svi-story[svi]'"
        raise InputError(f"{what}; for a preview without them use --engine animatic")
    from svi_story.engines.svi.engine import Options, Svi
    from svi_story.engines.svi.identity import SviIdentity

    text_key = SviIdentity(options.models, options.dtype, digest).text_key
    settings = Options(
        options.models,
        options.dtype,
        attention=options.attention,
        memory=options.memory,
        vae=options.vae,
        threads=options.threads,
    )
    return Svi(settings, digest, keep_embedding=lambda prompt: keep(text_key(prompt)), report=report)
