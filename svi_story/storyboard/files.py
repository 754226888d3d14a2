"""Reads small untrusted text files (regular files only, limited in size, UTF-8) and writes new ones."""

from __future__ import annotations

import os
import re
import stat
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.commands import suggest
from svi_story.errors import InputError, Problem
from svi_story.fields import format_value
from svi_story.files import (
    CHANGED,
    UnfitError,
    atomic_file,
    disk,
    open_regular,
    read_regular,
    remove_stale_temps,
    rename_new,
    temp_name,
)
from svi_story.portable import IS_POSIX, copy_owner, try_lock
from svi_story.storyboard.names import nearest_file

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 2_000_000
LONGEST_MAGIC = 32

_KINDS = (
    (
        rb"\xff\xd8\xff|\x89PNG|GIF8|BM.{4}\0|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(?:avi[fs]|hei[cxms]|mif1)",
        "a picture; a board names it, as `reference: {file}`",
    ),
    (
        rb"....ftypM4[AB]|ID3[\x02-\x04]|\xff[\xf2-\xfb]|RIFF....WAVE|fLaC|OggS|FORM....AIF",
        "a sound; a board names it, as a clip's `voice` or as `audio` under `cut:`",
    ),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |\0\0\x01\xba", "a film; `{review}` examines it"),
    (
        rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|7z\xbc\xaf|Rar!|\xd0\xcf\x11\xe0",
        "an archive or an Office document; save what is in it as text",
    ),
    (rb"%PDF|\{\\rtf", "a document with fonts and pages; save it as plain text"),
    (rb"\0\x05\x16\x07", "macOS metadata (AppleDouble); name the file without `._` at its start"),
    (rb".{6}\0\0\{\"|GGUF", "a file of weights; name its folder with --models"),
)
"""How files start that are no text, what they are, and what to do with them."""
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
        with suppress(OSError), open_regular(path) as file:
            _check_kind(file.read(LONGEST_MAGIC), str(path))
        remedy = "run the same command again" if error.strerror == CHANGED else "split it into several"
        raise InputError(Problem(f"{error.strerror}; {remedy}", file=str(path))) from error
    except OSError as error:
        what = f"cannot be read ({error.strerror}); check its permissions"
        raise InputError(Problem(what, file=str(path))) from error


def decode(raw: bytes, file: str) -> str:
    """UTF-8 bytes as text with `\\n` line breaks. Raises InputError for anything else."""
    _check_kind(raw[:LONGEST_MAGIC], file)
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


def _check_kind(start: bytes, file: str) -> None:
    """Raises InputError for a file that is no text, by its first bytes."""
    for magic, kind in _KINDS:
        if re.match(magic, start, re.DOTALL):
            what = kind.format(file=file, review=suggest("review", path=file))
            raise InputError(Problem(f"is not a text file, but {what}", file=file))


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


def replace_file(path: Path, before: bytes, after: bytes) -> None:
    """Replace a user's file at once if it still has the bytes `before`; its permissions and owner stay.

    Of a link, the file that it leads to is replaced. Raises InputError where the file was changed or is
    read-only, and RenderError for a full disk and the like; the file is then as it was.
    """
    target = Path(os.path.realpath(path))

    def check() -> None:
        if read_bytes(target) != before:
            raise changed_meanwhile(path)

    def unchanged(temporary: Path) -> bool:
        check()
        copy_owner(target, temporary)
        temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        return True

    check()
    if not os.access(target, os.W_OK) or not target.stat().st_mode & 0o222:
        raise InputError(Problem("is read-only; make it writable for you, then try again", file=str(path)))
    remove_stale_temps(target.parent)
    with _alone(target, path), atomic_file(target, unchanged) as temporary, disk(target):
        temporary.write_bytes(after)


@contextmanager
def _alone(target: Path, path: Path) -> Iterator[None]:
    """Keep other processes of svi-story from replacing a file too, between their last look and the renaming.

    Not on Windows, where an open file cannot be replaced, and not where locks do not work.
    """
    with disk(target), open_regular(target) if IS_POSIX else nullcontext() as file:
        if file:
            try:
                try_lock(file.fileno())
            except BlockingIOError as error:
                raise changed_meanwhile(path) from error
            except OSError:
                pass
        yield


def changed_meanwhile(path: Path) -> InputError:
    """The error for a file that another program changed between reading and writing it."""
    what = "was changed by another program meanwhile, and stays as it is; run the same command again"
    return InputError(Problem(what, file=str(path)))


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a failed write."""
    return InputError(
        Problem(f"cannot be written ({error.strerror}); fix that and try again", file=str(path))
    )
