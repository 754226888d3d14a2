"""Settings of a project and its user, and where a project's files belong.

Precedence: option, environment variable, the project's `svi-story.toml`, the user's, default.
"""

from __future__ import annotations

import os
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from platformdirs import user_cache_path, user_config_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
)

from svi_story.enginespec import KERNELS, PRECISIONS, engine_names
from svi_story.errors import InputError, Problem
from svi_story.events import Warned
from svi_story.fields import format_value, nearest, text_problem, wrong
from svi_story.portable import user_id
from svi_story.storyboard.files import decode, read_bytes
from svi_story.storyboard.templates import SETTINGS as FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from svi_story.events import Reporter

PREFIX = "SVI_STORY_"
STORYBOARDS = "storyboards"
MEMORY_MODES = ("auto", "resident", "offload", "stream")
USER_ONLY = "watch"
"""The table of the user's own file that neither a project nor the environment may set."""


def _one_of(names: Callable[[], Sequence[str]], value: str) -> str:
    known = names()
    if value not in known:
        meant = nearest(value, known)
        guess = f'; did you mean "{meant}"?' if meant else ""
        raise wrong(f"{format_value(value)} is none of {', '.join(known)}{guess}")
    return value


def _choice(names: Callable[[], Sequence[str]]) -> AfterValidator:
    return AfterValidator(partial(_one_of, names))


def _listed(value: object) -> object:
    return [value] if isinstance(value, str | Path) else value


class WatchSettings(BaseModel):
    """Where `watch` serves its page."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1)] = Field(
        "127.0.0.1", description="the address or name that it listens on", examples=['"10.0.0.7"']
    )
    port: int = Field(
        8765, ge=0, le=65535, strict=True, description="the port; 0: any that is free", examples=["9000"]
    )
    names: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")], ...] = Field(
        (), description="further names by which browsers call this machine", examples=['["gpu.example.org"]']
    )


class WeightSettings(BaseModel):
    """How weights are held, and the files to use for roles, which are its other fields."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Path] = Field(init=False)

    precision: Annotated[str, _choice(lambda: PRECISIONS)] | None = None
    """None: bf16, unless a bundle says otherwise."""

    @model_serializer
    def _set(self) -> dict[str, str]:
        """What is set, as a settings file has it."""
        held = {"precision": self.precision} if self.precision else {}
        return {**held, **{role: str(file) for role, file in self.files}}

    @property
    def files(self) -> tuple[tuple[str, Path], ...]:
        """Roles and their files."""
        return tuple((self.__pydantic_extra__ or {}).items())


class Settings(BaseModel):
    """What a machine, a user or a project decides. All paths are resolved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Annotated[str, _choice(engine_names)] | None = Field(
        None, description="the engine, whatever a board names", examples=['"animatic"']
    )
    models: Annotated[tuple[Path, ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        description="where the weights are: a folder or a list of folders", examples=['["/data/models"]']
    )
    weights: WeightSettings = Field(
        WeightSettings(),
        description=f"how experts are held in memory: {', '.join(PRECISIONS)}; or a table with that as "
        "`precision`, and the file to use for a role, where several would do",
        examples=['"int8"', '{precision = "int8", high = "/data/high.safetensors"}'],
    )
    cache: Path = Field(
        description="where finished segments are kept; a project's must be inside the project",
        examples=['"renders/.cache"'],
    )
    output: Path = Field(
        description="where films go; a project's must be inside the project", examples=['"films"']
    )
    memory: Annotated[str, _choice(lambda: MEMORY_MODES)] = Field(
        "auto", description=f"where the experts are: {', '.join(MEMORY_MODES)}", examples=['"offload"']
    )
    attention: Annotated[str, _choice(lambda: KERNELS)] = Field(
        "auto", description="the attention kernel", examples=['"torch-cudnn"']
    )
    compile: bool = Field(
        default=False, description="whether the experts are compiled with torch.compile", examples=["true"]
    )
    workers: int = Field(
        0, ge=0, strict=True, description="how many workers `--ray` uses; 0: one per GPU", examples=["2"]
    )
    watch: WatchSettings = Field(
        WatchSettings(),
        description="where `watch` serves its page; only in the user's own file",
        examples=['{host = "127.0.0.1", port = 8765}'],
    )


def user_file() -> Path:
    """The user's own settings file."""
    return user_config_path("svi-story", appauthor=False) / FILE


def user_cache() -> Path:
    """Where data that all projects share is kept, such as hashes of weights. It may not exist."""
    return user_cache_path("svi-story", appauthor=False)


def project_root(folder: Path, report: Reporter = lambda _event: None) -> Path:
    """The root of the project that boards in a folder belong to; absolute, with links resolved.

    The nearest folder with a settings file of this user; else the parent of a folder named `storyboards`;
    else the folder itself. A settings file of another user is reported and ignored.
    """
    folder = Path(os.path.realpath(folder))
    for place in _up_to_home(folder):
        owner = _owner(place / FILE)
        if owner is not None and owner != user_id():
            report(Warned(f"{place / FILE} belongs to another user and is ignored; copy it to use it"))
        elif owner is not None:
            return place
    inside = (place for place in (folder, *folder.parents) if place.name == STORYBOARDS)
    return next((place.parent for place in inside), folder)


def _up_to_home(folder: Path) -> Iterator[Path]:
    """A folder and those above it, up to the home directory or the boundary of the file system."""
    home = Path(os.path.realpath(_expand("~")))
    for place in (folder, *folder.parents):
        yield place
        if place == home or os.path.ismount(place):  # Path.is_mount fails on Windows before Python 3.12
            return


def _owner(file: Path) -> int | None:
    """The user id of a file's owner (0 on Windows, where nobody has one); None where there is no file."""
    try:
        return file.stat().st_uid
    except (OSError, ValueError):
        return None


def load_settings(root: Path, options: Mapping[str, object] | None = None) -> Settings:
    """The settings of the project at `root`; `options` are those of the command line, by field.

    Raises InputError with everything that is wrong.
    """
    merged: dict[str, Any] = {}
    for _, values in settings_by_source(root, options or {}):
        merged |= values
    return Settings(**merged)


def settings_by_source(root: Path, options: Mapping[str, object]) -> list[tuple[str, dict[str, Any]]]:
    """Every source of settings with what it sets, the weakest first. Raises InputError as `load_settings`."""
    sources, problems = [("default", _defaults(root))], []
    for file, is_project in ((user_file(), False), (root / FILE, True)):
        if _owner(file) is None:
            continue
        written, line_of = _read(file)
        values = {name: _resolved(name, _table(name, value), file.parent) for name, value in written.items()}
        checked = dict(values)
        if isinstance(values.get(USER_ONLY), dict) and not is_project:
            checked |= {f"{USER_ONLY}.{key}": value for key, value in checked.pop(USER_ONLY).items()}
        for name, value in checked.items():
            what = _problem(name, value, is_project=is_project)
            if not what and is_project and name in ("cache", "output") and not _is_inside(root, value):
                what = (
                    f"{format_value(written[name])} is outside the project; a project's settings cannot name "
                    f"such a folder: set it in {user_file()}, in {PREFIX}{name.upper()} or as an option"
                )
            if what:
                line = line_of(name.rpartition(".")[2]) or line_of(USER_ONLY)
                problems.append(Problem(what, str(file), line, name))
        sources.append((str(file), values))
    variables = {name: PREFIX + name.upper() for name in Settings.model_fields if name != USER_ONLY}
    environment = {
        (variable, name): _resolved(name, _table(name, _from_text(name, text)), Path.cwd())
        for name, variable in variables.items()
        if (text := os.environ.get(variable))
    }
    problems += _misspelt(variables)
    given = {("option", name): _table(name, value) for name, value in options.items()}
    for (source, name), value in (environment | given).items():
        if what := _problem(name, value, is_project=False):
            problems.append(Problem(what, path=name if source == "option" else source))
        sources.append((source, {name: value}))
    if problems:
        raise InputError(*problems)
    weights: dict[str, Any] = {}
    for _, values in sources:  # this table is merged role by role
        if "weights" in values:
            weights = values["weights"] = {**weights, **values["weights"]}
    return sources


def _misspelt(variables: Mapping[str, str]) -> Iterator[Problem]:
    """Environment variables that were probably meant as settings; others may belong to somebody else."""
    for variable in sorted(os.environ.keys() - {*variables.values()}):
        name = variable.removeprefix(PREFIX).lower()
        if variable.startswith(PREFIX) and (meant := nearest(name, variables)):
            yield Problem(f"is not a setting; did you mean {variables[meant]}?", path=variable)


def _defaults(root: Path) -> dict[str, Any]:
    models = root / "models"
    if not models.is_dir() and Path("models").is_dir():
        models = Path("models").absolute()
    renders = root / "renders"
    here = {"models": (models,), "weights": {}, "cache": renders / ".cache", "output": renders}
    return {name: here.get(name, field.default) for name, field in Settings.model_fields.items()}


def _read(file: Path) -> tuple[dict[str, Any], Callable[[str], int]]:
    """What a settings file says, and a function for the line of a key. Raises InputError."""
    text = decode(read_bytes(file), str(file))
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        hint = "; write paths with / or in single quotes" if "\\" in text else ""
        if str(error).startswith("Invalid value"):
            hint = '; write text in quotes, as "animatic"'
        what = f"is not valid TOML: {error}{hint}"
        raise InputError(Problem(what, str(file), int(line[1]) if line else 0)) from error

    def line_of(name: str) -> int:
        key = re.search(rf"^[ \t]*\[?[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*[].=]", text, re.MULTILINE)
        return text.count("\n", 0, key.start()) + 1 if key else 0

    return found, line_of


def _from_text(name: str, text: str) -> Any:
    """The value of an environment variable."""
    if name == "models":
        return text.split(os.pathsep)
    if name == "weights":
        pairs = [part.partition("=") for part in text.split(os.pathsep)]
        return {role if path else "precision": path or role for role, _, path in pairs}
    return int(text) if name == "workers" and text.isdecimal() else text


def _table(name: str, value: Any) -> Any:
    """A value as it is merged: the name of a precision alone stands for a table."""
    return {"precision": value} if name == "weights" and isinstance(value, str) else value


def _resolved(name: str, value: Any, folder: Path) -> Any:
    """A value with its paths joined to a folder, `~` expanded; whatever has a wrong type stays as it is."""
    if name not in ("models", "weights", "cache", "output"):
        return value
    if isinstance(value, list):
        return [_resolved(name, each, folder) for each in value]
    if isinstance(value, dict):
        paths = {role: path for role, path in value.items() if role != "precision"}
        return {**value, **{role: _resolved(name, path, folder) for role, path in paths.items()}}
    return folder / _expand(value) if isinstance(value, str) and value else value


def _expand(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where nobody has that name


def _problem(name: str, value: Any, *, is_project: bool) -> str:
    """What is wrong with a setting, or with `watch.NAME`; empty when it can be used."""
    if is_project and name == USER_ONLY:
        return f"belongs in your own {user_file()}: a project, which may be somebody else's, must not set it"
    _, table, key = name.partition(f"{USER_ONLY}.")
    model: type[BaseModel] = WatchSettings if table else Settings
    key = key or name
    if key not in model.model_fields:
        meant = nearest(key, model.model_fields)
        guess = f'did you mean "{meant}"? ' if meant else ""
        return f"is not a setting; {guess}settings are {', '.join(model.model_fields)}"
    if isinstance(value, Path) and (reason := text_problem(str(value), one_line=True)):
        return reason
    try:
        model(**{**({} if table else _defaults(Path("/"))), key: value})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "wrong":
            return first["msg"]
        example = (model.model_fields[key].examples or [""])[0]
        return f"{format_value(value)} cannot be used; write {key} = {example}"
    return ""


def _is_inside(root: Path, path: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
