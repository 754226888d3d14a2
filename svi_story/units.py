"""Numbers with their units, for people."""

from __future__ import annotations

GIB = 2**30


def counted(count: int, noun: str) -> str:
    """As `1 clip` or `3 clips`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def clock(seconds: float) -> str:
    """A time as `1:20:05`, or as `4:05` below an hour."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def gib(count: int) -> str:
    """Bytes as `28.3 GiB`, or as `1.5 MiB` below a tenth of a GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / 2**20:.1f} MiB"
