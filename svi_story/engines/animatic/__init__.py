"""The engine for people without a GPU: a moving camera over the anchor, with a burnt-in slate."""

from svi_story.engines.animatic.engine import Animatic, AnimaticIdentity

__all__ = ["Animatic", "AnimaticIdentity"]
