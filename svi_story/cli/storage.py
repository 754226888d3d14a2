"""Commands about the cache: ls, verify, gc."""

from __future__ import annotations

import typer

cache_app = typer.Typer(
    no_args_is_help=True, help="Look after finished segments.", rich_markup_mode=None, add_completion=False
)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(cache_app, name="cache")
