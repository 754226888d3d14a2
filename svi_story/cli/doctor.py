"""The command that checks the machine: doctor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svi_story.cli.models import model_folders, variant_named
from svi_story.cli.options import (
    DTYPES,
    AsJson,
    Cache,
    Dtype,
    Engine,
    Models,
    Output,
    Weights,
    one_of,
    settings_here,
)
from svi_story.cli.terminal import answer, answer_json, complain, table
from svi_story.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.render.doctor import Check
    from svi_story.render.smoke import SmokeTest


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(doctor)


def doctor(
    context: typer.Context,
    models: Models = None,
    output: Output = None,
    cache: Cache = None,
    engine: Engine = "",
    full: Annotated[bool, typer.Option("--full", help="Also read every byte of the weights.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Also render two short test clips.")] = False,
    variant: Annotated[
        str, typer.Option("--variant", metavar="2.0|2.0-pro", help="The variant that --smoke renders.")
    ] = "",
    reference: Annotated[
        Path | None,
        typer.Option("--reference", "-r", metavar="IMAGE", help="The reference image for --smoke."),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="The picture size for --smoke.")
    ] = "416x240",
    frames: Annotated[int, typer.Option("--frames", min=9, help="Frames per clip for --smoke.")] = 33,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Sampling steps for --smoke.")] = 12,
    chain: Annotated[
        Path | None,
        typer.Option("--board", metavar="BOARD", help="For --smoke: this board's first chain instead."),
    ] = None,
    dtype: Dtype = "bfloat16",
    weights: Weights = "",
    as_json: AsJson = False,
) -> None:
    """Check whether this machine can render.

    It says how to fix what is missing. Ends with 0 when it can, else with 1. Downloads nothing.

    --smoke makes two clips with the real weights, the second one twice: with the anchor and with an empty
    one. It reports the result, and puts the pictures beside the films: whether the anchor's subject came
    back is for your eyes. With --board it makes the first chain of a board, in whose last clip the subject
    returns.

    \b
    svi-story doctor
    svi-story doctor --engine animatic
    svi-story doctor --full --json
    svi-story doctor --smoke --variant 2.0-pro --reference cat.jpg
    svi-story doctor --smoke --board my-film/my-film.yaml
    """
    from svi_story.cache.outputs import Outputs
    from svi_story.enginespec import DEFAULT, spec_of
    from svi_story.files import short_path
    from svi_story.render.doctor import Places, check_every_byte, examine
    from svi_story.render.smoke import SmokeTest

    _check_smoke_options(context, smoke=smoke, board=chain)
    settings = settings_here(models=models, output=output, cache=cache, engine=engine, weights=weights)
    wanted, precision = settings.engine or DEFAULT, settings.weights.precision or "bf16"
    where, films = model_folders(settings), short_path(settings.output)
    numbers = one_of(dtype, DTYPES, "--dtype")
    places = Places(where, films, short_path(settings.cache), precision)
    findings = list(examine(wanted, places))
    if spec_of(wanted).uses_weights and full:
        findings.append(check_every_byte(places))
    if spec_of(wanted).uses_weights and smoke:
        made = variant_named(variant) or "2.0"
        test = SmokeTest(
            *(where, made, size, frames, steps, numbers, reference, films),
            outputs=Outputs(settings.cache),
            precision=precision,
            board=chain,
        )
        findings += _smoke(test)
    ready = all(finding.state != "lacking" for finding in findings)
    if as_json:
        listed = [{**asdict(each), "cure": each.remedy} for each in findings]  # the old name
        answer_json({"engine": wanted, "ready": ready, "findings": listed})
    else:
        _show(findings)
        complain(f"this machine can {'' if ready else 'not yet '}render with the {wanted} engine")
    if not ready:
        raise typer.Exit(ExitCode.FAILED)


def _check_smoke_options(context: typer.Context, *, smoke: bool, board: Path | None) -> None:
    """Refuse options of --smoke without it, and those that a board replaces."""
    for name in ("variant", "reference", "size", "frames", "steps", "chain"):
        source = context.get_parameter_source(name)
        given = source is not None and source.name == "COMMANDLINE"
        option = "--board" if name == "chain" else f"--{name}"
        if given and not smoke:
            raise typer.BadParameter("is for --smoke, which was not given", param_hint=option)
        if given and board and option != "--board":
            raise typer.BadParameter("is what --board says already; give one of them", param_hint=option)


def _smoke(test: SmokeTest) -> Iterator[Check]:
    """The test's findings; what keeps it from being made is one too."""
    from svi_story.errors import StoryError
    from svi_story.render.doctor import Check
    from svi_story.render.smoke import make

    try:
        yield from make(test, complain)
    except KeyboardInterrupt as error:
        complain("interrupted; nothing of the test is kept: the same command begins again")
        raise typer.Exit(ExitCode.INTERRUPTED) from error
    except StoryError as error:
        yield Check("smoke", "lacking", str(error), "fix this, then run the same command again")
    except ImportError as error:
        yield Check("smoke", "lacking", f"cannot start: {error}", "install what is missing above")


def _show(findings: Sequence[Check]) -> None:
    answer(*table(("what", "state", ""), [(each.name, each.state, each.detail) for each in findings]))
    for each in findings:
        if each.remedy and each.state != "ok":
            answer(f"{each.name}: {each.remedy}")
