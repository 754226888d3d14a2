"""Reads small untrusted text files (regular files only, limited in size, UTF-8) and writes new ones."""

from __future__ import annotations

import os
import re
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from contextlib import suppress
from typing import TYPE_CHECKING

from svi_story.errors import InputError, Problem
from svi_story.fields import format_value
from svi_story.files import CHANGED, UnfitError, read_regular, remove_stale_temps, rename_new, temp_name
from svi_story.storyboard.names import nearest_file

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 2_000_000

_OTHER_ENCODINGS = (BOM_UTF32_LE, BOM_UTF32_BE, BOM_UTF16_LE, BOM_UTF16_BE)
# U+0085, U+2028 and U+2029 break lines in some YAML and Python readers and not in others.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")
"""Characters that no text file may contain."""


def absent(path: Path) -> str:
    """Why a path is not a readable regular file; empty when it is one."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "does not exist"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "cannot be read (its name contains NUL)"
    if stat.S_ISDIR(mode):
        return "is a folder"
    return "" if stat.S_ISREG(mode) else "is not a regular file"


def read_bytes(path: Path) -> bytes:
    """A regular file's bytes. Raises InputError when it does not exist or is larger than MAX_BYTES."""
    reason = absent(path)
    if reason:
        near = nearest_file(path.parent, path.name) if reason == "does not exist" else ""
        remedy = f"there is {format_value(str(path.with_name(near)))}" if near else "check the path"
        raise InputError(Problem(f"{reason}; {remedy}", file=str(path)))
    try:
        return read_regular(path, MAX_BYTES)
    except UnfitError as error:
        remedy = "run the same command again" if error.strerror == CHANGED else "split it into several"
        raise InputError(Problem(f"{error.strerror}; {remedy}", file=str(path))) from error
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
        what = f"an invisible character (U+{ord(found.group()):04X}) is not allowed here; remove it"
        raise InputError(Problem(what, file=file, line=line))
    return text


def write_new(path: Path, raw: bytes) -> None:
    """Write a new file completely or not at all; creates its parent folders.

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
    """The error for a failed write."""
    return InputError(
        Problem(f"cannot be written ({error.strerror}); fix that and try again", file=str(path))
    )
