"""A bundle's board on this machine: its files, its LoRAs, and whether its frames will be the same."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.bundle.format import FILES, input_hashes
from svi_story.commands import suggest
from svi_story.errors import InputError, Problem
from svi_story.fields import format_value
from svi_story.files import regular_size
from svi_story.storyboard.source import load

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from svi_story.bundle.format import FileHash
    from svi_story.bundle.unpack import UnpackedBundle
    from svi_story.plan.fingerprints import Fingerprints
    from svi_story.plan.model import FilmPlan, Segment
    from svi_story.storyboard.source import BoardFile, FileKind

MOST_NAMED = 5


@dataclass(frozen=True)
class BundleResolver:
    """A closed table: a name that is not in it is never searched for on disk."""

    bundle: UnpackedBundle
    files: Mapping[str, Path]
    """Images and recordings, unpacked."""
    weights: Mapping[str, Path]
    """LoRAs, found by content; for those that were not found, a path at which there is nothing."""
    models: tuple[Path, ...]
    """The folders in which they were searched for; none where the engine uses none."""

    def path(self, name: str) -> Path:
        """The path in the table. Raises InputError for any other name."""
        found = self.files.get(name) or self.weights.get(name)
        if found is None:
            raise InputError(Problem(f"{format_value(name)} is not in the bundle", file=str(self.bundle.zip)))
        return found

    def name(self, path: Path) -> str:
        """The name on the board."""
        return self._names.get(path, str(path))

    def unusable(self, name: str, kind: FileKind) -> str:
        """Weights cannot come from the bundle, and nothing else from outside it."""
        known = self.weights if kind == "weights" else self.files
        return "" if name in known else "is not in the bundle, and its board can name nothing else"

    def rephrase(self, problem: Problem) -> Problem:
        """With the author's names of files for paths in the cache, and the place of a missing LoRA."""
        for name, lora in self.bundle.manifest.weights.items():
            if problem.file == str(_missing_path(self.bundle, lora)):
                what = f"the LoRA {format_value(name)} was missing when this bundle was packed; pack it again"
                if lora is not None:
                    folders = " or ".join(map(str, self.models))
                    what = (
                        f"the LoRA {format_value(name)} is not below {folders}: put it there, under any "
                        f"name that ends in .safetensors ({lora.bytes} bytes, sha256 {lora.sha256})"
                    )
                return Problem(what, file=str(self.bundle.zip))
        manifest = self.bundle.manifest
        names = {str(self.bundle.path(member)): name for name, member in manifest.files.items()}
        names[str(self.bundle.board)] = manifest.board

        def author_s_name(match: re.Match[str]) -> str:
            path = match[0] if match[0] in names else match[0].rstrip(".")  # the end of a sentence
            return format_value(names[path]) + match[0][len(path) :] if path in names else match[0]

        preview, of_bundle = (suggest("preview", path=path) for path in (self.bundle.board, self.bundle.zip))
        board = re.escape(str(self.bundle.board))
        files = re.escape(f"{self.bundle.folder / FILES}{os.sep}")
        file = names.get(problem.file)
        return replace(
            problem,
            what=re.sub(
                f"{board}|{files}[a-z0-9_.-]+", author_s_name, problem.what.replace(preview, of_bundle)
            ),
            file=f"{self.bundle.zip} ({file})" if file else problem.file,
        )

    @cached_property
    def _names(self) -> dict[Path, str]:
        return {path: name for name, path in {**self.weights, **self.files}.items()}


def load_bundled(bundle: UnpackedBundle, models: tuple[Path, ...], fingerprints: Fingerprints) -> BoardFile:
    """The board of a bundle; its LoRAs are searched for below `models`.

    Raises InputError for everything that is wrong with it, as for names of files that are not in the bundle.
    """
    manifest = bundle.manifest
    wanted = list(dict.fromkeys(lora for lora in manifest.weights.values() if lora))
    found = _find_weights(wanted, models, fingerprints) if models and wanted else {}
    weights = {
        name: found.get(lora.sha256 if lora else "", _missing_path(bundle, lora))
        for name, lora in manifest.weights.items()
    }
    files = {name: bundle.path(member) for name, member in manifest.files.items()}
    return load(bundle.board, BundleResolver(bundle, files, weights, models))


def bundle_of(plan: FilmPlan) -> UnpackedBundle | None:
    """The bundle that a film's board came in; None for a board in a folder."""
    return plan.resolver.bundle if isinstance(plan.resolver, BundleResolver) else None


def _missing_path(bundle: UnpackedBundle, lora: FileHash | None) -> Path:
    """Stands for a LoRA that is not on this machine: there is never a file at this path."""
    return bundle.folder / "missing" / (lora.sha256 if lora else "unknown")


def _find_weights(
    wanted: Collection[FileHash], models: tuple[Path, ...], fingerprints: Fingerprints
) -> dict[str, Path]:
    """The paths of wanted files below some folders, by sha256. Only files of a wanted size are hashed."""
    sizes: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in models:
        for path, size in _safetensors_below(folder):
            sizes[size].append(path)
    found: dict[str, Path] = {}
    for each in wanted:
        for path in sizes[each.bytes]:
            try:
                digest = fingerprints.file(path)
            except InputError:  # about a file that may not be needed
                continue
            if digest == each.sha256:
                found[each.sha256] = path
                break
    return found


def _safetensors_below(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every safetensors file below a folder with its size, in order of name; links are followed, once."""
    seen: set[tuple[int, int]] = set()
    for parent, names, files in os.walk(folder, followlinks=True):
        names.sort()
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in (Path(parent, name) for name in sorted(files) if name.endswith(".safetensors")):
            size = regular_size(path) if path.exists() else None
            if size is not None:
                yield path, size


def difference(bundle: UnpackedBundle, segments: Sequence[Segment]) -> str:
    """Why these frames are not those of the bundle; empty when they are."""
    packed = bundle.manifest.keys
    if not packed or not segments or packed == tuple(segment.key for segment in segments):
        return ""
    ours, theirs = input_hashes(segments), bundle.manifest.made_of
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    why = f"{', '.join(names[:MOST_NAMED])} differ" if names else "later segments differ"
    return f"{bundle.zip}: these are not the frames it was packed with: {why}"
