"""All that is wrong, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from svi_story.errors import InputError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


def all_of(calls: Iterable[Callable[[], T]]) -> list[T]:
    """What each call returns. Raises one InputError with the problems of every call that failed."""
    results: list[T] = []
    problems: list[Problem] = []
    for call in calls:
        try:
            results.append(call())
        except InputError as error:
            problems += (problem for problem in error.problems if problem not in problems)
    if problems:
        raise InputError(*problems)
    return results


def few(problems: list[Problem], most: int = 8) -> list[Problem]:
    """The first problems of a kind, and how many more there are."""
    if len(problems) <= most:
        return problems
    rest = Problem(f"and {len(problems) - most} more like that", file=problems[0].file)
    return [*problems[:most], rest]
