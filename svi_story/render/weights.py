"""Weights by content: where a LoRA lies on this machine, whatever it is called here."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.errors import InputError
from svi_story.files import regular_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.render.bundle import Sealed

SAFE = ".safetensors"


def find_weights(wanted: Collection[Sealed], models: Path, fingerprints: Fingerprints) -> dict[str, Path]:
    """Where wanted files lie below the models folder, by sha256. Only files of a wanted size are hashed."""
    sizes: defaultdict[int, list[Path]] = defaultdict(list)
    for path, size in _below(models) if wanted else ():
        sizes[size].append(path)
    found: dict[str, Path] = {}
    for each in wanted:
        for path in sizes[each.bytes]:
            if _hash(path, fingerprints) == each.sha256:
                found[each.sha256] = path
                break
    return found


def _below(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every safetensors file below a folder with its size, in order of name; links are followed, once."""
    seen: set[tuple[int, int]] = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        names.sort()
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in (Path(parent, name) for name in sorted(files) if name.endswith(SAFE)):
            size = regular_size(path) if path.exists() else None
            if size is not None:
                yield path, size


def _hash(path: Path, fingerprints: Fingerprints) -> str:
    try:
        return fingerprints.file(path)
    except InputError:
        return ""
