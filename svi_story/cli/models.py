"""Commands about weights: list, check, download, prepare."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svi_story.cli.options import DTYPES, AsJson, Dtype, Models, one_of, settings_here
from svi_story.cli.terminal import answer, answer_json, complain, in_bytes, shorten, table
from svi_story.enginespec import DEFAULT, PRECISIONS
from svi_story.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.candidates import Candidate, Expert
    from svi_story.engines.svi.weights.download import DownloadItem
    from svi_story.engines.svi.weights.hashes import Progress
    from svi_story.engines.svi.weights.locate import ModelFolders, PartStatus
    from svi_story.engines.svi.weights.locate import Weights as FoundWeights
    from svi_story.engines.svi.weights.lora import LoraUse
    from svi_story.enginespec.sampling import Variant
    from svi_story.events import Event, Reporter
    from svi_story.settings import Settings

models_app = typer.Typer(
    no_args_is_help=True,
    help="List, check, download and prepare the weights.",
    rich_markup_mode=None,
    add_completion=False,
)

PRESETS = ("quality", "fast", "draft")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(models_app, name="models")


def model_folders(settings: Settings) -> ModelFolders:
    """Where weights are searched, with paths as short as they can be shown."""
    from svi_story.engines.svi.weights.locate import ModelFolders
    from svi_story.files import short_path

    folders = tuple(short_path(folder) for folder in settings.models)
    return ModelFolders(folders, settings.weights.files)


def variant_named(name: str) -> Variant | None:
    """The variant the user named, or None. Raises a usage error."""
    from svi_story.engines.svi.weights.catalogue import VARIANTS

    if name:
        one_of(name, VARIANTS, "--variant")
    return next((variant for variant in VARIANTS if variant == name), None)


@models_app.command("list")
def list_models(models: Models = None, as_json: AsJson = False) -> None:
    """List the weights that were found, and what is missing.

    Looks at names, sizes and headers; `models check` reads every byte.

    \b
    svi-story models list
    svi-story models list --models ~/ComfyUI --json
    """
    from svi_story.engines.svi.weights.catalogue import PARTS, VARIANTS, parts_for
    from svi_story.engines.svi.weights.locate import find_weights
    from svi_story.plan.fingerprints import Fingerprints

    hashes = Fingerprints.of_this_machine(lambda _event: None)
    weights = find_weights(model_folders(settings_here(models=models)), hashes.remembered)
    missing = {variant: weights.missing(parts_for(variant)) for variant in VARIANTS}
    fast = weights.missing(parts_for("2.0", "fast"))
    if as_json:
        answer_json(
            {
                "models": [str(folder.resolve()) for folder in weights.where.folders],
                "files": [_file_json(weights, each) for each in weights.candidates],
                "parts": [_part_json(weights.status(part)) for part in PARTS],
                "variants": {variant: not lacking for variant, lacking in missing.items()},
            }
        )
        return
    shown = [each for each in weights.candidates if each.kind != "other"]
    rows = [
        (
            _role_of(weights, each) or each.what,
            each.format or "-",
            each.precision or "-",
            in_bytes(each.bytes),
            _state_of(weights, each, hashes.remembered),
            str(each.files[0]),
        )
        for each in sorted(shown, key=lambda each: _order(weights, each))
    ]
    answer(*table(("what", "format", "precision", "size", "state", "file"), rows))
    for each in shown:
        for problem in each.problems[:1]:
            complain(str(problem))
    if others := len(weights.candidates) - len(shown):
        complain(f"files of other models: {others}")
    for note in (
        *(f"{each}: does not exist" for each in weights.where.folders if not each.exists()),
        *weights.notes,
    ):
        complain(note)
    for variant, lacking in (*missing.items(), ("2.0 with the presets fast and draft", fast)):
        complain(f"SVI {variant}: {weights.not_found(lacking).what if lacking else 'ready'}")


def _role_of(weights: FoundWeights, candidate: Candidate) -> str:
    """What a file is used as; empty when it is not used."""
    from svi_story.engines.svi.weights.locate import WHAT

    roles = [role for role, used in weights.used.items() if used == candidate]
    return ", ".join(WHAT[role].removeprefix("the ") for role in roles)


def _state_of(weights: FoundWeights, candidate: Candidate, digest: Digest = lambda _: "") -> str:
    """Whether a file is used; of a prepared expert, whether it could be."""
    from svi_story.engines.svi.weights.prepared import examine
    from svi_story.errors import InputError

    if candidate.problems:
        return "cannot be used"
    if candidate.kind == "prepared":
        try:
            return examine(candidate.files[0], weights.experts, digest)[1] or "ready"
        except InputError as error:
            return error.problems[0].what
    return "used" if _role_of(weights, candidate) else "not used"


def _order(weights: FoundWeights, candidate: Candidate) -> tuple[int, str]:
    """What is used first, by role."""
    roles = [place for place, (_, used) in enumerate(weights.used.items()) if used == candidate]
    return (min(roles, default=len(weights.used)), candidate.kind)


def _file_json(weights: FoundWeights, candidate: Candidate) -> dict[str, Any]:
    return {
        "what": candidate.what,
        "used_as": [role for role, used in weights.used.items() if used == candidate],
        "format": candidate.format,
        "precision": candidate.precision,
        "bytes": candidate.bytes,
        "usable": candidate.kind != "other" and not candidate.problems,
        "files": [str(file) for file in candidate.files],
        "problems": [str(problem) for problem in candidate.problems],
    }


def _part_json(status: PartStatus) -> dict[str, Any]:
    return {
        "part": status.part.name,
        "state": status.state,
        "bytes": status.bytes,
        "files": [str(file) for file in status.files],
        "problems": [str(problem) for problem in status.problems],
    }


@models_app.command()
def check(
    models: Models = None,
    variant: Annotated[
        str, typer.Option("--variant", metavar="2.0|2.0-pro", help="The variant to check. Default: both.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Read every byte of the weights that are used.

    Headers, shards, shapes, numbers, hashes and LoRAs are checked. Ends with 1 when something is wrong.
    Without --variant, every file that was found must be correct, and one of the variants complete.

    \b
    svi-story models check
    svi-story models check --variant 2.0-pro --json
    """
    from svi_story.engines.svi.weights.hashes import hash_each_once
    from svi_story.engines.svi.weights.inspection import inspect
    from svi_story.engines.svi.weights.locate import find_weights

    with transfers() as progress:
        digest = hash_each_once(progress)
        weights = find_weights(model_folders(settings_here(models=models)), digest)
        report = inspect(weights, _asked(weights, variant_named(variant)), digest, progress)
    read = {each.file for each in report.files}
    others = [each for each in weights.candidates if each.kind != "other" and read.isdisjoint(each.files)]
    if as_json:
        found = {
            "files": [{**vars(each), "file": str(each.file)} for each in report.files],
            "not_read": [_file_json(weights, each) for each in others],
            "problems": [str(each) for each in report.problems],
            "notes": report.notes,
        }
        answer_json({"models": [str(folder.resolve()) for folder in weights.where.folders], **found})
    else:
        rows = [
            (
                *(each.part, each.format, each.precision, in_bytes(each.bytes), each.sha256),
                *(each.known or "unknown", str(each.file)),
            )
            for each in report.files
        ]
        rows += [
            (
                *(each.what, each.format, each.precision, in_bytes(each.bytes), "not read"),
                *(_state_of(weights, each), str(each.files[0])),
            )
            for each in others
        ]
        answer(*table(("part", "format", "precision", "size", "sha256", "known as", "file"), rows))
    unusable = [problem for each in others for problem in each.problems[:1]]
    notes = (*weights.notes, *report.notes, *(each for each in unusable if each not in report.problems))
    for note in notes:
        complain(f"note: {note}")
    for problem in report.problems:
        complain(str(problem))
    complain(f"{len(report.files)} files checked, {len(report.problems)} problems")
    if report.problems:
        raise typer.Exit(ExitCode.FAILED)


def _asked(weights: FoundWeights, variant: Variant | None) -> list[PartStatus]:
    """The parts to check: those of a variant, or all that were found and those that every variant needs."""
    from svi_story.engines.svi.weights.catalogue import BASE, PARTS, VARIANTS, parts_for

    statuses = {part.name: weights.status(part) for part in PARTS}
    if variant:
        return [statuses[part.name] for part in parts_for(variant)]
    there = {name for name, status in statuses.items() if status.state != "missing"}
    needed = {*BASE, *there}
    if not any(f"svi-{each}" in there for each in VARIANTS):
        needed.add("svi-2.0")
    return [status for name, status in statuses.items() if name in needed]


@models_app.command()
def download(
    models: Models = None,
    variant: Annotated[
        str, typer.Option("--variant", metavar="2.0|2.0-pro", help="The variant whose LoRAs to download.")
    ] = "2.0",
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="fast", help="Also download what the presets fast and draft need."),
    ] = "quality",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
) -> None:
    """Download the missing weights of a variant.

    Shows what, how much, under which licence and where to before anything starts. An interrupted download
    continues when the command is run again. No other command ever downloads anything.

    \b
    svi-story models download
    svi-story models download --variant 2.0-pro --preset fast --yes
    HF_TOKEN=... svi-story models download
    """
    from svi_story.engines.svi.weights.catalogue import parts_for
    from svi_story.engines.svi.weights.download import Hub, check_space, fetch, prepare
    from svi_story.engines.svi.weights.locate import find_weights

    weights = find_weights(model_folders(settings_here(models=models)))
    target = weights.where.download_target()
    parts = parts_for(variant_named(variant) or "2.0", one_of(preset, PRESETS, "--preset"))
    wanted = [part for part in parts if not _is_elsewhere(weights.status(part), target)]
    hub = Hub()
    with transfers() as progress:
        items = prepare(target, wanted, hub, progress)
    _show(items, target)
    if any(not item.there for item in items):
        check_space(target, items)
        _agree(yes=yes)
        total = sum(item.to_read for item in items)
        with transfers("downloaded", total) as progress:
            fetch(target, items, hub, progress)
    for item in items:
        answer(str(item.target))


@models_app.command()
def prepare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Boards whose LoRAs are merged.", show_default=False),
    ] = None,
    models: Models = None,
    weights: Annotated[
        str, typer.Option("--weights", metavar="NAME", help="What is prepared: only int8 is.")
    ] = "int8",
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="Where to. Default: the user's cache folder."),
    ] = None,
    variant: Annotated[
        str, typer.Option("--variant", metavar="2.0|2.0-pro", help="Without boards: whose LoRAs are merged.")
    ] = "2.0",
    preset: Annotated[
        str,
        typer.Option("--preset", metavar="fast", help="Without boards: also the LoRAs of the preset."),
    ] = "quality",
    dtype: Dtype = "bfloat16",
) -> None:
    """Merge and quantise the experts once, for a faster start.

    LoRAs are merged too. A render with --weights int8 then reads 14.5 GB for each expert instead of 57. It
    looks in the user's cache folder and in the folders that --models names. Frames are the same.

    \b
    svi-story models prepare --weights int8
    svi-story models prepare --variant 2.0-pro --preset fast
    svi-story models prepare boards/ --to /data/models
    """
    from svi_story.engines.svi.device import configure, find_device
    from svi_story.engines.svi.weights.loading import Placement
    from svi_story.engines.svi.weights.locate import find_weights, prepared_folder
    from svi_story.engines.svi.weights.prepared import check_space, is_prepared, plan_experts, prepare_expert
    from svi_story.plan.fingerprints import Fingerprints

    if one_of(weights, PRECISIONS, "--weights") != "int8":
        raise typer.BadParameter("only int8 is prepared", param_hint="--weights")
    one_of(dtype, DTYPES, "--dtype")
    import torch

    configure()
    folder = (to or prepared_folder()).absolute()
    with transfers() as progress:
        hashes = Fingerprints.of_this_machine(_hashing(progress))
        found = find_weights(model_folders(settings_here(models=models)), hashes.file)
        lora_sets = _lora_sets(found, paths or [], models, variant, preset)
        placement = Placement(find_device(), getattr(torch, dtype), int8=True)
        experts = plan_experts(found.models(), lora_sets, placement, folder, hashes.file)
        hashes.save()
    rows = [
        (
            each.origin.expert,
            ", ".join(f"{lora.name} at {lora.strength:g}" for lora in each.origin.loras),
            "there" if each.there else "to write",
            str(each.target),
        )
        for each in experts
    ]
    complain(*table(("expert", "LoRAs", "state", "file"), rows))
    check_space(folder, experts)
    with transfers("done") as progress:
        hashes.report = _hashing(progress)
        for each in experts:
            if is_prepared(each.target, each.origin, hashes.file):  # perhaps by another process meanwhile
                continue
            prepare_expert(each, hashes.file, _reading(progress, each.target))
            progress(each.target.name, 1, 1)
            hashes.save()
    answer(*(str(each.target) for each in experts))
    if to and folder not in map(Path.absolute, settings_here(models=models).models):
        complain(f"renders look for them there with a further --models {to}")


def _lora_sets(
    found: FoundWeights, paths: Sequence[Path], models: list[Path] | None, variant: str, preset: str
) -> list[dict[Expert, list[LoraUse]]]:
    """The LoRAs that boards use, or those of a variant and a preset. Raises InputError for bad boards."""
    from svi_story.api import prepare_jobs
    from svi_story.cli.console import warn
    from svi_story.engines.svi.identity import lora_uses
    from svi_story.enginespec.svi import PRESETS as PRESET_SETTINGS
    from svi_story.errors import InputError

    if not paths:
        distill = PRESET_SETTINGS[one_of(preset, PRESETS, "--preset")].distill
        return [lora_uses(variant_named(variant) or "2.0", distill, (), found)]
    options: Any = {"engine": DEFAULT, **({"models": models} if models else {})}
    jobs, rejected, _ = prepare_jobs(paths, options, warn)
    problems = [problem for each in rejected for problem in each.error.problems]
    problems += [problem for job in jobs if job.missing for problem in job.missing.problems]
    if problems:
        raise InputError(*problems)
    used = {
        (segment.sampler.variant, segment.sampler.distill, segment.loras)
        for job in jobs
        for segment in job.segments
    }
    return [lora_uses(*each, found) for each in sorted(used, key=str)]


def _hashing(progress: Progress) -> Reporter:
    """Hashing as progress of files."""
    from svi_story.events import Hashing

    def report(event: Event) -> None:
        if isinstance(event, Hashing):
            progress(f"hashing {event.path.name}", event.done, event.total)

    return report


def _reading(progress: Progress, target: Path) -> Reporter:
    """The reading of sources as progress of the file that is written from them."""
    from svi_story.events import ModelLoading

    def report(event: Event) -> None:
        if isinstance(event, ModelLoading):
            progress(target.name, event.done, event.total)

    return report


def _is_elsewhere(status: PartStatus, models: Path) -> bool:
    """Whether a part is there, but not where a download would put it: such a file is not downloaded again."""
    place = models / status.part.source.folder
    return status.state == "ready" and not any(file.is_relative_to(place) for file in status.files)


def _show(items: Sequence[DownloadItem], models: Path) -> None:
    """Show what would be downloaded: source, licence, size and destination."""
    from svi_story.engines.svi.weights.download import free_space

    missing = [item for item in items if not item.there]
    sources = list(dict.fromkeys((item.offer.repo, item.licence, item.source.folder) for item in missing))
    rows = []
    for repo, licence, folder in sources:
        mine = [item for item in missing if item.offer.repo == repo]
        size = in_bytes(sum(item.to_read for item in mine))
        rows.append((repo, licence, str(len(mine)), size, str(models / folder)))
    if rows:
        complain(*table(("repository", "licence", "files", "to download", "place"), rows))
    for item in missing:
        if item.replaces:
            complain(f"{item.target}: {item.replaces}; it will be replaced")
    total, free = in_bytes(sum(item.to_read for item in missing)), in_bytes(free_space(models))
    there = f"{len(items) - len(missing)} of {len(items)} files are there"
    complain(f"{there}; {total} to download; {free} free" if missing else there)


def _agree(*, yes: bool) -> None:
    """Ask the user to confirm."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("cannot ask for confirmation without a terminal; start it with --yes")
    if not typer.confirm("Download?", err=True):
        raise typer.Exit(ExitCode.NOT_STARTED)


@contextmanager
def transfers(done: str = "", total: int = 0) -> Iterator[Progress]:
    """Progress of big files: a bar for each on a terminal, and one for `total` bytes if that is known.

    Without a terminal, the word `done` is printed once for each file, if it is given.
    """
    if sys.stderr.isatty():
        with _bars(total) as show:
            yield show
        return
    reported: set[str] = set()

    def progress(name: str, count: int, size: int) -> None:
        if done and count >= size and name not in reported:
            reported.add(name)
            complain(f"{name}: {done}")

    yield progress


@contextmanager
def _bars(total: int) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    text = rich.TextColumn("{task.description}", markup=False)
    columns = (text, rich.BarColumn(), rich.DownloadColumn(), rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=console, transient=True) as bars:
        everything = bars.add_task("all files", total=total, visible=total > 0)
        tasks: dict[str, rich.TaskID] = {}
        before: dict[str, int] = {}

        def show(name: str, count: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(shorten(name, 60), total=size)
            bars.update(tasks[name], completed=count, total=size)
            bars.advance(everything, count - before.get(name, count))
            before[name] = count
            if count >= size:
                bars.remove_task(tasks.pop(name))

        yield show
