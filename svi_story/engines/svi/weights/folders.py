"""The folders that weights are searched in, as the programs that people use lay them out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from svi_story.errors import InputError, Problem
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterator

COMFY_PATHS = "extra_model_paths.yaml"
COMFY_CATEGORIES = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "loras")
MAX_YAML = 2**20


def expand(place: Path) -> list[Path]:
    """The folders and files that a place given by the user stands for.

    ComfyUI's own folder stands for its models, and `extra_model_paths.yaml`, beside or in it, for the folders
    that it lists. Raises InputError for one that cannot be read.
    """
    if place.suffix in (".yaml", ".yml") and place.is_file():
        return _comfy_paths(place)
    marks = [place / name for name in ("main.py", COMFY_PATHS)]
    is_comfy = (place / "models").is_dir() and any(mark.is_file() for mark in marks)
    models = place / "models" if is_comfy else place
    lists = [models.parent / COMFY_PATHS] if models.name == "models" else [place / COMFY_PATHS]
    return [models, *(folder for file in lists if file.is_file() for folder in _comfy_paths(file))]


def _comfy_paths(file: Path) -> list[Path]:
    try:
        sections = yaml.safe_load(read_regular(file, MAX_YAML))
        found = []
        for section in (sections or {}).values():
            base = file.parent / os.path.expandvars(Path(section.get("base_path") or "").expanduser())
            for category in COMFY_CATEGORIES:
                lines = str(section.get(category) or "").splitlines()
                found += [base / line.strip() for line in lines if line.strip()]
    except (OSError, ValueError, AttributeError, TypeError, RuntimeError, yaml.YAMLError) as error:
        what = f"cannot be read as ComfyUI's list of model folders ({str(error).splitlines()[0]})"
        raise InputError(Problem(what, file=str(file))) from error
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]


def visible_files(root: Path) -> Iterator[Path]:
    """Every file below a folder (or the file itself), sorted, links followed; none that is hidden.

    macOS leaves a hidden file `._NAME` beside every file on some disks.
    """
    if root.is_file():
        yield root
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        try:
            stat = os.stat(folder)  # noqa: PTH116 - of a path that os.walk gave
        except OSError:
            continue
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
