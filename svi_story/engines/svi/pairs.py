"""Is this the right LoRA in the right place? Official files are known by hash, others by their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.engines.svi.layout import EXPERTS
from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from svi_story.engines.svi.layout import Expert, Pair
    from svi_story.enginespec.sampling import Variant

    Digest = Callable[[Path], str]
    """A file's sha256 in hex. Raises InputError when it cannot be read."""


@dataclass(frozen=True)
class Role:
    """What a LoRA file of SVI is made for."""

    variant: Variant
    expert: Expert

    def __str__(self) -> str:
        return f"SVI {self.variant} LoRA of the {self.expert}-noise expert"


OFFICIAL = {
    ("299b3300", "bd52"): Role("2.0-pro", "high"),
    ("e8fcce15", "9c0b"): Role("2.0-pro", "low"),
}
"""The first and last hex digits of the sha256 of the files the SVI authors published."""

_SVI_NAME = re.compile(r"svi_.*_(high|low)_noise_lora_v2\.0(_pro)?\.safetensors", re.IGNORECASE)
_EXPERT_NAME = re.compile(r"(?<![a-z])(high|low)[_-]?noise", re.IGNORECASE)


def known_role(digest: str) -> Role | None:
    """The role of an official file, by its sha256."""
    return OFFICIAL.get((digest[:8], digest[-4:]))


def named_role(file: Path) -> Role | None:
    """The role that a file's name claims, if it is named like an official SVI file."""
    match = _SVI_NAME.fullmatch(file.name)
    if match is None:
        return None
    return Role("2.0-pro" if match[2] else "2.0", "high" if match[1].lower() == "high" else "low")


def check_svi_pair(variant: Variant, pair: Pair, digest: Digest) -> list[str]:
    """Notes about the variant's own pair. Raises InputError when a file is known to be another one's.

    A file that is not known is used under the name that is expected of it, and noted.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    for expert in EXPERTS:
        file, wanted = pair.of(expert), Role(variant, expert)
        known = known_role(digest(file))
        claimed = known or named_role(file)
        if claimed is not None and claimed != wanted:
            what = f"is the {claimed}, not the {wanted}; {_cure(claimed, wanted)}"
            problems.append(Problem(what, file=str(file)))
        elif known is None:
            notes.append(f"{file}: not known to be the official {wanted} (by its sha256); used as it is")
    if problems:
        raise InputError(*problems)
    return notes + _doubles(pair, digest)


def check_extra(file: Path, experts: tuple[Expert, ...], digest: Digest) -> list[str]:
    """Notes about a LoRA besides the pair, used on these experts. Raises InputError for one of SVI's own."""
    role = known_role(digest(file)) or named_role(file)
    if role is not None:
        what = f"is the {role}; engine.variant brings its pair by itself, so take it out of loras"
        raise InputError(Problem(what, file=str(file)))
    match = _EXPERT_NAME.search(file.name)
    meant = match[1].lower() if match else ""
    if not meant or all(expert == meant for expert in experts):
        return []
    return [f"{file}: named for the {meant}-noise expert, but used on the other one"]


def check_distill(pair: Pair) -> None:
    """Raises InputError when the distillation pair's names say that the two are swapped."""
    names = {expert: _EXPERT_NAME.search(pair.of(expert).name) for expert in EXPERTS}
    problems = [
        Problem(f"is named for the other expert than {expert}; swap the two", file=str(pair.of(expert)))
        for expert, match in names.items()
        if match and match[1].lower() != expert
    ]
    if problems:
        raise InputError(*problems)


def _doubles(pair: Pair, digest: Digest) -> list[str]:
    """A note for each of the pair that is the same as another SVI file: one was saved under two names."""
    beside = [other for file in (pair.high, pair.low) for other in file.parent.glob("*.safetensors")]
    others = sorted({pair.high, pair.low, *(file for file in beside if named_role(file))})
    return [
        f"{file}: the same file as {other.name}; the official ones all differ, so download both again"
        for file in (pair.high, pair.low)
        for other in others
        if other != file and digest(other) == digest(file)
    ]


def _cure(got: Role, wanted: Role) -> str:
    if got.variant == wanted.variant:
        return "the two experts' files are swapped: swap them back"
    return f"download the {wanted.variant} pair, or set engine.variant: {got.variant!r}"
