"""An entry: one finished segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svi_story.cache.frames import Frames
from svi_story.cache.layout import FRAMES, LATENTS
from svi_story.cache.sealed import ENTRY, unseal
from svi_story.cache.tensors import load_tensors
from svi_story.files import CorruptError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from svi_story.cache.sealed import Manifest
    from svi_story.plan.keys import Json


@dataclass(frozen=True)
class Entry:
    """A finished segment, verified when it was looked up."""

    key: str
    folder: Path
    manifest: Manifest
    """What entry.json says: `inputs` (of the key), `frames`, `files` (bytes, sha256), `notes`, `made`."""

    @property
    def frame_count(self) -> int:
        """Frames the model made, before any drop."""
        count = self.manifest["frames"]
        assert isinstance(count, int)
        return count

    @property
    def frames_sha256(self) -> str:
        """The sha256 of the frames' file: equal frames, equal value."""
        files = self.manifest["files"]
        assert isinstance(files, dict)
        described = files[FRAMES]
        assert isinstance(described, dict)
        return str(described["sha256"])

    @property
    def engine(self) -> str:
        """The name of the engine that made it, by its key's inputs."""
        inputs = self.manifest["inputs"]
        assert isinstance(inputs, dict)
        return str(inputs.get("engine"))

    @property
    def notes(self) -> dict[str, Json]:
        """What was noted when it was made; empty where nothing was."""
        notes = self.manifest.get("notes")
        return notes if isinstance(notes, dict) else {}

    @property
    def environment(self) -> dict[str, str]:
        """What the engine said of the machine that made it, in its notes; empty where nothing was said."""
        said = self.notes.get("environment")
        return {name: str(value) for name, value in said.items()} if isinstance(said, dict) else {}

    def latents(self) -> dict[str, NDArray[Any]]:
        """The segment's latents by name. CorruptError when they changed since the look-up."""
        latents = load_tensors(self.folder / LATENTS, {"key": self.key})
        if latents is None:
            raise CorruptError(f"{self.folder} vanished while it was used; run the same command again")
        return latents

    def frames(self) -> Frames:
        """A reader of the segment's frames, to be closed. CorruptError when they are not all there."""
        frames = Frames(self.folder / FRAMES)
        if len(frames) != self.frame_count:
            frames.close()
            raise CorruptError(f"{self.folder} does not hold its {self.frame_count} frames")
        return frames


def open_entry(folder: Path, key: str) -> Entry:
    """The entry in a folder, every byte verified. CorruptError says what is wrong."""
    manifest = unseal(folder, ENTRY, key)
    if not isinstance(manifest.get("frames"), int):
        raise CorruptError(f"{ENTRY.manifest} counts no frames")
    return Entry(key, folder, manifest)
