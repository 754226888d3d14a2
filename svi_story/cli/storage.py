"""Commands about the cache: ls, verify, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from svi_story.cache.store import Store

cache_app = typer.Typer(
    no_args_is_help=True, help="Look after finished segments.", rich_markup_mode=None, add_completion=False
)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(cache_app, name="cache")


def _store(cache: Path) -> Store:
    from svi_story.cache.store import Store
    from svi_story.cli.console import warn

    return Store(cache, warn)
