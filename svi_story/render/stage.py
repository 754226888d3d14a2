"""What rendering works with. The engine is entered when it is first needed: an up-to-date film needs none."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from svi_story.cache.aside import FORCED
from svi_story.cache.outputs import Outputs
from svi_story.enginespec import EngineOptions
from svi_story.errors import InputError, PassingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Executor
    from types import TracebackType

    from svi_story.cache.store import Store
    from svi_story.engines.base import Engine
    from svi_story.events import Reporter
    from svi_story.plan.model import Segment


@dataclass
class Stage:
    """An engine, and all the segments that are wanted of it."""

    engine: Engine
    wanted: Sequence[Segment]
    store: Store
    stack: ExitStack = field(default_factory=ExitStack)
    ready: bool = False
    failure: Exception | None = None
    forced: set[str] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def entered(self) -> Engine:
        """The engine, entered once and prepared for all that is missing. What went wrong goes wrong again."""
        if self.failure is not None:
            raise self.failure
        if not self.ready:
            try:
                self._prepare(self.stack.enter_context(self.engine))
            except Exception as error:
                self.failure = error
                self.stack.close()
                raise
            self.ready = True
        return self.engine

    def check(self, segments: Sequence[Segment]) -> None:
        """Check all that these segments need, before any of them is made. Raises InputError."""
        self.entered().prepare(segments)

    def forgive(self) -> None:
        """Let what may have passed by now be tried again."""
        if isinstance(self.failure, PassingError):
            self.failure = None

    def set_aside(self, key: str) -> None:
        """Set a segment aside to be made again: once, whichever boards share it and are begun anew."""
        if key not in self.forced:
            self.store.set_aside(key, FORCED)
            self.forced.add(key)

    def _prepare(self, engine: Engine) -> None:
        missing = [segment for segment in self.wanted if self.store.state(segment.key) != "cached"]
        with suppress(InputError):  # told again for the board that it is about; the others go on
            engine.prepare(missing)


@dataclass
class Elsewhere(Stage):
    """An engine that is entered by workers, not here; they check what they are given."""

    options: EngineOptions = field(default_factory=EngineOptions)
    """With which they make it."""

    def check(self, segments: Sequence[Segment]) -> None:
        """Nothing can be checked here."""


@dataclass(frozen=True)
class Studio:
    """What rendering works with."""

    stage: Stage
    store: Store
    encoder: Executor
    """Encodes pieces, one at a time, beside everything else."""
    report: Reporter
    outputs: Outputs = field(default_factory=Outputs)
    """Writes what lies outside the cache."""
