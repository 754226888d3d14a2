"""GGUF files, versions 2 and 3. Source: ggml's docs/gguf.md.

The gguf package dequantises. Its reader is not used: it needs several objects for each of the 256,000 tokens
that a text encoder's header lists, and maps the whole file.
"""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from svi_story.engines.svi.weights.tensors import StoredTensor
from svi_story.errors import InputError, Problem, shorten_problems
from svi_story.files import check_regular, open_regular

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

MAGIC = b"GGUF"
MAX_HEADER = 64 * 2**20
"""Bytes of a header, at most: a text encoder's holds its vocabulary."""
MAX_TENSORS = 2**16
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
"""The types that are read: number in the file -> name, values in a block, bytes of a block."""
OTHER_TYPES = {
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    9: "Q8_1",
    15: "Q8_K",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Names of types that are not read."""
_BLOCKS = {name: (values, size) for name, values, size in TYPES.values()}
_NUMBERS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", "", "", "<Q", "<q", "<d")))
"""Metadata values by type, as struct formats; 8 is a string, 9 a list."""
_STRING, _LIST = 8, 9


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """One tensor of a GGUF file, in blocks of numbers that share scales."""

    offset: int
    """Of its first byte in the file."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return stored_bytes(self.dtype, self.shape)

    def read(self, device: torch.device | None = None) -> Tensor:
        """float32, as the gguf package dequantises it (on the CPU)."""
        import numpy as np
        import torch

        try:
            import gguf
        except ImportError as error:
            what = "reading GGUF needs the package gguf: pip install 'svi-story[svi]'"
            raise InputError(Problem(what, file=str(self.file))) from error
        values, size = _BLOCKS[self.dtype]
        wanted = self.nbytes
        try:
            with open_regular(self.file) as file:
                file.seek(self.offset)
                stored = np.frombuffer(file.read(wanted), np.uint8)
        except OSError as error:
            what = f"cannot be read: {error.strerror or error}"
            raise InputError(Problem(what, file=str(self.file))) from error
        if len(stored) < wanted:
            raise InputError(Problem("was cut short while it was read", file=str(self.file)))
        row = wanted if values == 1 else self.shape[-1] // values * size  # a few rows at a time
        numbers = gguf.quants.dequantize(stored.reshape(-1, row), gguf.GGMLQuantizationType[self.dtype])
        tensor = torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())
        return tensor.reshape(self.shape).to(device or "cpu")


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The size of a tensor in a GGUF file."""
    values, size = _BLOCKS[dtype]
    return math.prod(shape) // values * size


def is_gguf(file: Path) -> bool:
    """Whether a file is GGUF, by its first bytes or its name."""
    with suppress(OSError), open_regular(file) as opened:
        if opened.read(4) == MAGIC:
            return True
    return file.suffix == ".gguf"


def read_gguf(file: Path) -> tuple[dict[str, StoredTensor], dict[str, object]]:
    """Every tensor of a file by name, and its metadata without long lists. Reads no tensor.

    Raises InputError for a bad file, naming the tensors whose type is not read.
    """
    try:
        check_regular(file)
        stat = file.stat()
        with open_regular(file) as opened:
            header = _Header(opened)
            metadata, listed = header.metadata, header.tensors
    except OSError as error:
        raise InputError(Problem(f"cannot be read: {error.strerror or error}", file=str(file))) from error
    except (struct.error, ValueError, KeyError) as error:
        what = f"not a GGUF file, or cut short ({error}); download it again"
        raise InputError(Problem(what, file=str(file))) from error
    found: dict[str, StoredTensor] = {}
    problems: list[Problem] = []
    for name, (shape, kind, offset) in listed.items():
        if kind not in TYPES:
            readable = ", ".join(name for name, _, _ in TYPES.values())
            what = f"{name} is stored as {OTHER_TYPES.get(kind, f'type {kind}')}; read are {readable}"
            problems.append(Problem(what, file=str(file)))
            continue
        dtype, block, _ = TYPES[kind]
        original = metadata.get(f"comfy.gguf.orig_shape.{name}", shape)  # GGUF has four dimensions at most
        if not isinstance(original, tuple) or math.prod(original) != math.prod(shape):
            problems.append(Problem(f"{name} has the shape {list(shape)}, not {original}", file=str(file)))
        elif block > 1 and (original[-1:] != shape[-1:] or shape[-1] % block):
            what = f"{name} has rows of {original[-1:]}, which is no multiple of {block}"
            problems.append(Problem(what, file=str(file)))
        elif offset + stored_bytes(dtype, shape) > stat.st_size:
            what = f"not a GGUF file, or cut short (it ends within {name}); download it again"
            problems.append(Problem(what, file=str(file)))
        else:
            found[name] = GgufTensor(file, name, original, dtype, stat.st_mtime_ns, offset)
    if problems:
        raise InputError(*shorten_problems(problems))
    return found, metadata


class _Header:
    """A GGUF header. Raises ValueError, KeyError or struct.error where it is none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        if self._take(4) != MAGIC:
            raise ValueError("it does not start with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; little-endian files of version 2 and 3 are read")
        tensors, pairs = self._number("<Q"), self._number("<Q")
        if tensors > MAX_TENSORS:
            raise ValueError(f"{tensors} tensors")
        self.metadata: dict[str, object] = {}
        for _ in range(pairs):
            name = self._text()
            self.metadata[name] = self._value(self._number("<I"))
        listed: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensors):
            name = self._text()
            shape = tuple(self._number("<Q") for _ in range(min(self._number("<I"), 8)))[::-1]
            if name in listed:
                raise ValueError(f"{name} is there twice")
            listed[name] = (shape, self._number("<I"), self._number("<Q"))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**16:
            raise ValueError(f"alignment {alignment}")
        start = -(-self._file.tell() // alignment) * alignment
        self.tensors = {name: (shape, kind, start + place) for name, (shape, kind, place) in listed.items()}
        """Shape, number of the type and place in the file, by name."""

    def _take(self, count: int) -> bytes:
        if self._file.tell() + count > MAX_HEADER:
            raise ValueError(f"its header has more than {MAX_HEADER} bytes")
        data = self._file.read(count)
        if len(data) < count:
            raise ValueError("it ends within its header")
        return data

    def _number(self, form: str) -> int:
        number: int = struct.unpack(form, self._take(struct.calcsize(form)))[0]
        return number

    def _text(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8", "replace")

    def _value(self, kind: int) -> object:
        """A metadata value; None for a long list or a list of lists."""
        if kind == _STRING:
            return self._text()
        if kind != _LIST:
            return self._number(_NUMBERS[kind])
        inner, count = self._number("<I"), self._number("<Q")
        if inner == _LIST:
            raise ValueError("a list of lists in its header")
        if count <= 64:
            return tuple(self._value(inner) for _ in range(count))
        if inner == _STRING:
            for _ in range(count):
                self._take(self._number("<Q"))
        else:
            self._take(count * struct.calcsize(_NUMBERS[inner]))
        return None
