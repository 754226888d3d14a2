"""The commands that messages suggest. They repeat what the user gave this one.

Otherwise they would be about another cache, engine or project. Settings and environment variables apply to
every command anyway.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from svi_story.portable import command_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PROGRAM = "svi-story"


class Given(NamedTuple):
    """What a suggested command has to repeat."""

    paths: tuple[str, ...] = ()
    options: tuple[tuple[str, ...], ...] = ()
    """Each with its value, as `("--cache", "/data/cache")`."""


_given: dict[str, Given] = {}
"""By command, as `cache gc`. Empty for who calls the Python interface: there are no options."""


@contextmanager
def repeating(given: Mapping[str, Given]) -> Iterator[None]:
    """What this process suggests meanwhile repeats what is given, by the suggested command."""
    before = dict(_given)
    _given.update(given)
    try:
        yield
    finally:
        _given.clear()
        _given.update(before)


def repeated() -> dict[str, Given]:
    """What is repeated now, for another process that writes messages for this one."""
    return dict(_given)


def suggest(command: str, *words: str, path: object = None) -> str:
    """A command for the shell of this system, as `svi-story cache gc film.yaml --cache /data/cache`.

    It has the `path`, else those that the user gave where this command takes paths; then the words; then the
    options that the user gave and this command has, unless the words have them already.
    """
    given = _given.get(command, Given())
    paths = given.paths if path is None else (str(path),)
    options = [word for option in given.options if option[0] not in words for word in option]
    return command_line([PROGRAM, *command.split(), *map(_no_option, paths), *words, *options])


def _no_option(path: str) -> str:
    """A path that is not taken for an option."""
    return os.path.join(os.curdir, path) if path.startswith("-") else path  # noqa: PTH118 - Path drops the dot


def command_to_resume(words: Sequence[str]) -> str:
    """The command that continues a render, without `--force`: what was forced is missing already."""
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] == "--force":
            kept.pop()
        elif not word.startswith("--force="):
            kept.append(word)
    return command_line(kept)
