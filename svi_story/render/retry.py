"""What may pass by itself is tried again, after everything else: a policy."""

from __future__ import annotations

import time
from collections.abc import Callable  # noqa: TC003 - the dataclass's own field
from dataclasses import dataclass

LONGER = 4
"""How much longer every wait is than the one before."""


@dataclass(frozen=True)
class Retry:
    """How often, and after how long: 5 and 20 seconds unless told otherwise; a night may ask for more."""

    times: int = 2
    seconds: float = 5.0
    """Before the first time."""
    wait: Callable[[float], None] = time.sleep
    """Waits for some seconds; ^C ends it at once."""

    @property
    def pauses(self) -> tuple[float, ...]:
        """Seconds before each time."""
        return tuple(self.seconds * LONGER**number for number in range(self.times))
