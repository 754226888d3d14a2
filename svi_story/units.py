"""Numbers with their units, for people."""

from __future__ import annotations

GIB = 2**30


def gib(count: int) -> str:
    """Bytes as `28.3 GiB`, or as `1.5 MiB` below a tenth of a GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 else f"{count / 2**20:.1f} MiB"
