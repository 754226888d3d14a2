"""Reading a small text file from a stranger: regular files only, size first, UTF-8 only."""

from __future__ import annotations

import os
import re
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from contextlib import suppress
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.files import CHANGED, UnfitError, read_regular, remove_stale_temps, rename_new, temp_name

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 2_000_000

_OTHER_ENCODINGS = (BOM_UTF32_LE, BOM_UTF32_BE, BOM_UTF16_LE, BOM_UTF16_BE)
# U+0085, U+2028 and U+2029 break lines in some YAML and Python readers and not in others.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")
"""What no text file may hold."""


def absent(path: Path) -> str:
    """Why a path is no regular file that can be read; empty when it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "cannot be read (no file's name holds a NUL)"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is not a regular file"


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes. Raises InputError when there is none, or more than MAX_BYTES."""
    reason = absent(path)
    if reason:
        raise InputError(Problem(f"{reason}; check the path", file=str(path)))
    try:
        return read_regular(path, MAX_BYTES)
    except UnfitError as error:
        cure = "run the same command again" if error.strerror == CHANGED else "split it into several"
        raise InputError(Problem(f"{error.strerror}; {cure}", file=str(path))) from error
    except OSError as error:
        what = f"cannot be read ({error.strerror}); check its permissions"
        raise InputError(Problem(what, file=str(path))) from error


def decode(raw: bytes, file: str) -> str:
    """UTF-8 bytes as text with `\\n` line breaks. Raises InputError for anything else."""
    if raw.startswith(_OTHER_ENCODINGS):
        raise InputError(Problem("is UTF-16 or UTF-32; save it as UTF-8", file=file))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8 (byte 0x{raw[error.start]:02X}); save it as UTF-8"
        raise InputError(Problem(what, file=file, line=line)) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    found = FORBIDDEN.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        what = f"an invisible character (U+{ord(found.group()):04X}) that a text file may not hold; remove it"
        raise InputError(Problem(what, file=file, line=line))
    return text


def write_new(path: Path, raw: bytes) -> None:
    """Write a new file, whole or not at all, and the folders above it.

    Raises InputError when the file exists or cannot be written.
    """
    exists = InputError(Problem("exists already; choose another name", file=str(path)))
    if path.exists() or path.is_symlink():
        raise exists
    temporary = path.with_name(temp_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_temps(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                rename_new(temporary, path)
                return
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    raise exists


def unwritable(path: Path, error: OSError) -> InputError:
    """A failed write, with its reason."""
    return InputError(
        Problem(f"cannot be written ({error.strerror}); mend that and try again", file=str(path))
    )
