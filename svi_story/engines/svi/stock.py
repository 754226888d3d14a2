"""What is there: each part under a models folder, judged by names, sizes and headers. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svi_story.engines.svi.catalog import PARTS, parts_for
from svi_story.engines.svi.layout import find_distill_pair, find_model, find_svi_pair
from svi_story.engines.svi.tensors import read_header
from svi_story.engines.svi.together import few
from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from svi_story.engines.svi.catalog import Part
    from svi_story.engines.svi.layout import Pair
    from svi_story.enginespec.sampling import Variant


@dataclass(frozen=True)
class Holding:
    """One part as it lies on the disk."""

    part: Part
    files: tuple[Path, ...]
    """What the engine would read; empty where something is missing."""
    bytes: int
    """The size of all its files that are there."""
    problems: tuple[Problem, ...]

    @property
    def state(self) -> str:
        """ready, missing, or what is there is incomplete or broken."""
        if not self.problems:
            return "ready"
        return "broken" if self.files else "incomplete" if self.bytes else "missing"


def survey(root: Path) -> tuple[Holding, ...]:
    """Every part that any variant or preset may need. Reads headers, no weights."""
    return tuple(_holding(root, part) for part in PARTS)


def lacks(holdings: Sequence[Holding], variant: Variant, preset: str = "quality") -> tuple[Problem, ...]:
    """What keeps a variant from being rendered with a preset; empty when nothing does."""
    wanted = parts_for(variant, preset)
    return tuple(problem for held in holdings if held.part in wanted for problem in held.problems)


def _holding(root: Path, part: Part) -> Holding:
    try:
        files = _find(root, part)
    except InputError as error:
        return Holding(part, (), _bytes(_pieces(root, part)), error.problems)
    return Holding(part, files, _bytes(files), tuple(_unreadable(files)))


def _find(root: Path, part: Part) -> tuple[Path, ...]:
    """The files that the engine would read for a part. Raises InputError naming those that are missing."""
    if part.name == "svi-2.0":
        return _both(find_svi_pair(root, "2.0"))
    if part.name == "svi-2.0-pro":
        return _both(find_svi_pair(root, "2.0-pro"))
    if part.name == "distill":
        return _both(find_distill_pair(root))
    model = find_model(root, part.name)
    return (*model.weights, *((model.config,) if model.config else ()))


def _both(pair: Pair) -> tuple[Path, Path]:
    return pair.high, pair.low


def _pieces(root: Path, part: Part) -> tuple[Path, ...]:
    """What there is of a part that is not whole, in upstream's place for it."""
    patterns = (*part.needed, *part.besides)
    return tuple(file for pattern in patterns for file in sorted((root / part.source.folder).glob(pattern)))


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _unreadable(files: Sequence[Path]) -> list[Problem]:
    """The files that cannot be read as what they are: cut short, or something else under that name."""
    problems: list[Problem] = []
    for file in files:
        if file.suffix == ".safetensors":
            try:
                read_header(file)
            except InputError as error:
                problems += error.problems
    return few(problems)
