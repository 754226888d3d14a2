"""The command that shows the settings: config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from svi_story.cli.options import AsJson
from svi_story.cli.terminal import answer, answer_json, complain, table


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(config)


def config(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A board, or a folder of a project.", show_default=False)
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Print the settings of a project, and where each comes from.

    An option comes before an environment variable (SVI_STORY_ENGINE and so on), before the project's
    svi-story.toml, before your own, before the default.

    \b
    svi-story config
    svi-story config boards/film.yaml --json
    """
    from svi_story.cli.console import warn
    from svi_story.errors import InputError, Problem
    from svi_story.files import short_path
    from svi_story.settings import load_settings, project_root, settings_by_source, user_file

    if not path.exists():
        raise InputError(Problem("does not exist; check the path", file=str(path)))
    root = project_root(path if path.is_dir() else path.parent, warn)
    settings = load_settings(root).model_dump(mode="json")
    origin: dict[str, str] = {}
    for source, values in settings_by_source(root, {}):
        origin |= dict.fromkeys(values, source)
    if as_json:
        rows = {name: {"value": value, "source": origin[name]} for name, value in settings.items()}
        answer_json({"project": str(root), "user_file": str(user_file()), "settings": rows})
        return
    complain(f"project: {root}")
    answer(
        *table(
            ("setting", "source", "value"),
            [(name, str(short_path(Path(origin[name]))), _shown(value)) for name, value in settings.items()],
        )
    )


def _shown(value: object) -> str:
    """A setting's value on one line."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_shown(each)}" for name, each in value.items() if each != []) or "-"
    if isinstance(value, bool):
        return str(value).lower()  # as in svi-story.toml
    return "-" if value is None else str(value)
