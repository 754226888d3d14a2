"""Named tensors in a safetensors file with its own checksum."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from svi_story.files import DAMAGED, CorruptError, disk, read_regular, write_atomic
from svi_story.plan.keys import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[np.generic]]

LARGEST = 2**30
"""Bytes of one file; the latents of 81 frames in 1280x720 take 20 MB."""
META = "svi-story"
"""The only metadata field: safetensors writes several in random order, and files must be reproducible."""

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64"),
)
"""Known to both numpy and safetensors. bfloat16 is stored as float32 (exact), or viewed as uint16."""

LONGEST_HEADER = 2**20
"""Bytes; the files written here describe a few tensors."""

NO_NOTE: Mapping[str, str] = MappingProxyType({})


def encode(tensors: Tensors, note: Mapping[str, str] = NO_NOTE) -> bytes:
    """The bytes of a safetensors file: equal tensors and note, equal bytes.

    Any shape and memory layout; values are stored little-endian. TypeError for a dtype that is not in DTYPES.
    """
    from safetensors.numpy import save

    plain = {name: _plain(name, array) for name, array in tensors.items()}
    about = {"note": dict(note), "sha256": _digest(plain, note)}
    return save(plain, {META: canonical(about).decode()})


def save_tensors(path: Path, tensors: Tensors, note: Mapping[str, str] = NO_NOTE) -> None:
    """Replace the file at once, durably; its folder must exist. RenderError when it cannot be written."""
    write_atomic(path, encode(tensors, note), "writing tensors")


def load_tensors(path: Path, note: Mapping[str, str] = NO_NOTE) -> dict[str, NDArray[Any]] | None:
    """What `save_tensors` wrote with this note; None if there is no file; CorruptError if it is damaged.

    The file is read, not mapped: a mapped file that is truncated kills the process.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with disk(path, "reading tensors"):
        try:
            data = read_regular(path, LARGEST)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in DAMAGED:
                raise
            raise CorruptError(f"{path} cannot be read: {error.strerror}") from error
    try:
        length = int.from_bytes(data[:8], "little")
        if length > LONGEST_HEADER:  # parsing a tensor's description takes far more memory than its text
            raise ValueError("its header is too long")
        tensors = load(data)
        # the library returns the metadata of a path only, and this reads the file once
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][META])
        intact = about["note"] == dict(note) and about["sha256"] == _digest(tensors, note)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path} is not a safetensors file of svi-story") from error
    if not intact:
        raise CorruptError(f"{path} has other tensors than were written")
    return tensors


def _plain(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.name not in DTYPES:
        raise TypeError(f"tensor {name!r} is {array.dtype}; these can be stored: {', '.join(DTYPES)}")
    return array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)


def _digest(tensors: Mapping[str, NDArray[Any]], note: Mapping[str, str]) -> str:
    names = sorted(tensors)
    shapes = [[name, tensors[name].dtype.name, list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(canonical([dict(note), shapes]))
    for name in names:
        digest.update(tensors[name].data)
    return digest.hexdigest()
