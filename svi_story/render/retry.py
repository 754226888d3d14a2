"""What may pass by itself is tried again, after everything else: a policy."""

from __future__ import annotations

import time
from collections.abc import Callable  # noqa: TC003 - the dataclass's own field
from dataclasses import dataclass

LONGER = 4
"""How much longer every wait is than the one before."""


@dataclass(frozen=True)
class Retry:
    """How often, and after how long: 30 seconds, 2 minutes and 8 minutes unless told otherwise."""

    times: int = 3
    seconds: float = 30.0
    """Before the first time."""
    wait: Callable[[float], None] = time.sleep
    """Waits for some seconds; ^C ends it at once."""

    @property
    def pauses(self) -> tuple[float, ...]:
        """Seconds before each time."""
        return tuple(self.seconds * LONGER**number for number in range(self.times))
