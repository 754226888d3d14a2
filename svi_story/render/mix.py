"""Whether a film's clips were made alike: by one GPU, torch and attention kernel, all untiled or none."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST = 5
"""Clips that are named for one value."""


def mixed(made: Iterable[tuple[str, Mapping[str, str]]]) -> str:
    """What differs between clips' environments and which clips have what; empty when all are alike.

    Environments are those that entries remember, as the engine told them.
    """
    parts = list(made)
    names = dict.fromkeys(name for _, environment in parts for name in environment)
    found: list[str] = []
    for name in names:
        clips: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for clip, environment in parts:
            clips[environment.get(name, "unknown")][clip] = None
        if len(clips) > 1:
            told = "; ".join(f"{value} ({_named(list(some))})" for value, some in clips.items())
            found.append(f"{name}: {told}")
    if not found:
        return ""
    return (
        f"its clips were made in different environments, which may show: {', '.join(found)}. "
        "To make one again as this machine does: --force CLIP"
    )


def _named(clips: list[str]) -> str:
    shown = ", ".join(clips[:MOST])
    return shown if len(clips) <= MOST else f"{shown} and {len(clips) - MOST} more"
