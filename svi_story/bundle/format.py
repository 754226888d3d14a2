"""The format of a bundle: one zip with a board, the files it names, and a manifest with every file's hash.

Member names have one of a few forms, and members are stored uncompressed: nothing in a bundle can leave its
folder, be a link, or grow when it is unpacked. The board's text is unchanged; the files that it names are
looked up in the manifest, never on disk.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from svi_story.cache.entry import ENTRY
from svi_story.enginespec import engine_names, spec_of
from svi_story.errors import InputError, Problem
from svi_story.fields import Part
from svi_story.plan.keys import canonical
from svi_story.plan.resolve import MOST_SEGMENTS
from svi_story.portable import is_reserved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from svi_story.enginespec import EngineOptions
    from svi_story.plan.model import Segment

SUFFIX = ".zip"
VERSION = 1
MANIFEST = "manifest.json"
BOARD = "board.yaml"
FILES = "files/"
ENTRIES = "entries/"
MODE = 0o100644 << 16
"""The external attributes of every member: a regular file with mode 644, in the upper half (Unix)."""

LARGEST_MANIFEST = 16 * 2**20
LONGEST_NAME = 200
"""Bytes of a board's name; file systems take 255, and films and records add to it."""

_MEMBER = (
    r"^(board\.yaml|files/[0-9a-f]{16}-[a-z0-9_][a-z0-9_.-]{0,60}"
    r"|entries/[0-9a-f]{64}/(entry\.json|latents\.safetensors|frames\.avi))$"
)
_UNSAFE = re.compile(r"[^a-z0-9_.-]")
AGAIN = "have it exported again, with `svi-story export BOARD --to bundle`"


def is_bundle(path: Path) -> bool:
    """Whether a path names a bundle rather than a board."""
    return path.suffix.lower() == SUFFIX


def name_problem(name: str) -> str:
    """Why a board of this name cannot be packed; empty when it can."""
    if PurePath(name).suffix not in (".yaml", ".yml"):
        return "does not end in .yaml"
    if name.startswith(".") or name != name.strip():
        return "starts with a dot, or starts or ends with a space"
    if any(char in '/\\:*?"<>|' or not char.isprintable() for char in name):
        return "contains characters that not every file system takes"
    if is_reserved(name):
        return "is the name of a device on Windows"
    return "" if len(name.encode()) <= LONGEST_NAME else f"is longer than {LONGEST_NAME} bytes"


def _valid_name(name: str) -> str:
    reason = name_problem(name)
    if reason:
        raise ValueError(reason)
    return name


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MemberName = Annotated[str, Field(pattern=_MEMBER)]
BoardName = Annotated[str, AfterValidator(_valid_name)]


class FileHash(Part):
    """A file's size and hash."""

    bytes: int = Field(ge=0)
    sha256: Sha256


def _known_engine(name: str) -> str:
    if name not in engine_names():
        raise ValueError(f"no engine is named {name!r} here")
    return name


class FrameSettings(Part):
    """The command line's options that change frames."""

    engine: Annotated[str, AfterValidator(_known_engine)]
    dtype: Literal["bfloat16", "float32"]
    vae: Literal["whole", "strips", "tiles"]
    precision: Literal["bf16", "int8"] = "bf16"
    """How experts are held; left out of the manifest at its default, as in older ones."""

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = serialize(self)
        return {name: value for name, value in written.items() if (name, value) != ("precision", "bf16")}

    @property
    def options(self) -> dict[str, Any]:
        """The fields of EngineOptions among them."""
        return {"dtype": self.dtype, "vae": self.vae, "precision": self.precision}

    def __str__(self) -> str:
        held = "" if self.precision == "bf16" else f"{self.precision} weights"
        options = {"dtype": self.dtype, "vae": f"vae {self.vae}", "precision": held}
        words = [self.engine, *(options[name] for name in spec_of(self.engine).frame_options)]
        return ", ".join(word for word in words if word)


def settings_of(engine: str, options: EngineOptions) -> FrameSettings:
    """The settings that change a film's frames, apart from its board."""
    given = {"dtype": options.dtype, "vae": options.vae, "precision": options.precision}
    return FrameSettings.model_validate({"engine": engine, **given})


class Manifest(Part):
    """What a bundle contains, and what it was made from."""

    bundle: int = Field(ge=VERSION, le=VERSION)
    """The version of this format."""
    tool: str = Field(max_length=100)
    board: BoardName
    """The board's file name: a film's default title."""
    settings: FrameSettings
    members: dict[MemberName, FileHash]
    """Every member except the manifest."""
    files: dict[str, MemberName]
    """Members with images and recordings, by their names on the board."""
    weights: dict[str, FileHash | None]
    """LoRAs by their names on the board; they are not included. None: missing when it was packed."""
    keys: Annotated[tuple[Sha256, ...], Field(strict=False, max_length=MOST_SEGMENTS)]
    """Every segment's key in film order; empty if they could not be computed."""
    made_of: dict[str, Sha256]
    """Hashes of what the first segment's frames depend on, by name: shows what differs on another machine."""
    takes: Annotated[tuple[Sha256, ...], Field(strict=False, max_length=MOST_SEGMENTS)] = ()
    """The keys of the segments of takes that the film does not use; left out where there are none."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if BOARD not in self.members:
            raise ValueError(f"{BOARD} is not among the members")
        named = set(self.files.values())
        if named != {name for name in self.members if name.startswith(FILES)}:
            raise ValueError("its files are not those that the board names")
        if self.files.keys() & self.weights.keys():
            raise ValueError("it names one file as weights and as something else")
        if not self.entries <= {*self.keys, *self.takes}:
            raise ValueError("it contains segments that are not in the film")
        for key in sorted(self.entries):
            if any(name not in self.members for name in entry_members(key)):
                raise ValueError(f"entry {key[:12]} is incomplete")
        return self

    @property
    def entries(self) -> frozenset[str]:
        """The keys of the finished segments in it."""
        parts = (name.split("/") for name in self.members if name.startswith(ENTRIES))
        return frozenset(key for _, key, _ in parts)


def entry_members(key: str) -> tuple[str, ...]:
    """The members of one finished segment."""
    return tuple(f"{ENTRIES}{key}/{name}" for name in (ENTRY.manifest, *ENTRY.files))


def file_member(digest: str, name: str) -> str:
    """The member of an image or recording; its name ends like the author's, for people who open the zip."""
    plain = _UNSAFE.sub("_", PurePath(name).name.lower())[-40:].lstrip(".-") or "file"
    return f"{FILES}{digest[:16]}-{plain}"


def input_hashes(segments: Iterable[Segment]) -> dict[str, str]:
    """A hash of every input of the first segment."""
    first = next(iter(segments), None)
    inputs = first.inputs["inputs"] if first else None
    if first is None or not isinstance(inputs, dict):
        return {}
    about: Mapping[str, object] = {
        "engine": first.inputs["engine"],
        "engine revision": first.inputs["revision"],
        **inputs,
    }
    return {name: hashlib.sha256(canonical(value)).hexdigest() for name, value in about.items()}


def write_manifest(manifest: Manifest) -> bytes:
    """A manifest as JSON; equal manifests give equal bytes."""
    return (manifest.model_dump_json(indent=1, exclude=None if manifest.takes else {"takes"}) + "\n").encode()


def read_manifest(raw: bytes, zip_: Path) -> Manifest:
    """A manifest that agrees with itself. Raises InputError."""
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part)[:80] for part in first["loc"][:3])
    if place == "bundle":
        what = (
            f"is not a bundle that this svi-story can read (version {VERSION}); update svi-story, or {AGAIN}"
        )
    else:
        reason = ": ".join(part for part in (place, first["msg"][:200]) if part)
        what = f"its {MANIFEST} is invalid ({reason}); {AGAIN}"
    raise InputError(Problem(what, file=str(zip_)))
