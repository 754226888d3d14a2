"""What the field knows to go wrong: said before GPU time is spent, never an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from svi_story.enginespec import spec_of
from svi_story.plan import lint_film, lint_model
from svi_story.plan.model import Lint

if TYPE_CHECKING:
    from svi_story.plan.model import FilmPlan
    from svi_story.storyboard.source import BoardFile


def lints(board: BoardFile, plan: FilmPlan) -> tuple[Lint, ...]:
    """Everything to warn of that the board does not ignore, in the order of its lines.

    What only concerns a model is left out when neither the board nor the user asks for it.
    """
    wanted = spec_of(board.story.engine.name).lints | spec_of(plan.engine).lints
    model = {name: check for name, check in lint_model.CHECKS.items() if name in wanted}
    found = [
        Lint(name, board.problem(*each))
        for name, check in (lint_film.CHECKS | model).items()
        if name not in board.story.lint.ignore
        for each in check(board, plan)
    ]
    return tuple(sorted(found, key=lambda lint: lint.problem.line))
