"""Generates `cli.md`, `storyboard.schema.json`, and the tables in `memory.md`, `json.md`, the toy's card."""

from __future__ import annotations

import ast
import json
import re
from itertools import groupby, product
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from typer.testing import CliRunner

from svi_story import events
from svi_story.cli.app import app
from svi_story.engines.svi.device import FreeMemory
from svi_story.engines.svi.memory import HOST, MODES, choose, needs_of, vae_need
from svi_story.engines.svi.vae import STRIPS
from svi_story.engines.svi.weights.architecture import A14B
from svi_story.enginespec import PRECISIONS
from svi_story.errors import InputError
from svi_story.event_json import json_name
from svi_story.plan.model import Size
from svi_story.render.record import Record
from svi_story.render.summary import PlanSummary, StatesSummary
from svi_story.render.takes import TakesSummary
from svi_story.review.summary import ReviewSummary
from svi_story.storyboard.schema import json_schema
from svi_story.units import GIB, gib

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from svi_story.engines.svi.memory import Needs

COMMANDS = (
    (), ("new",), ("import",), ("validate",), ("plan",), ("preview",), ("render",), ("status",),
    ("takes",), ("pick",), ("watch",), ("stop",),
    ("export",), ("review",),
    ("cache",), ("cache", "ls"), ("cache", "verify"), ("cache", "gc"),
    ("models",), ("models", "list"), ("models", "check"), ("models", "download"), ("models", "prepare"),
    ("doctor",), ("config",),
    ("schema",),
)  # fmt: skip

SEVERAL = """\
One board never stops another. Errors of a board (it is invalid, cannot be found or read, or would write
the same film as another one) are reported on standard error, and the command goes on with the other
boards. The exit code is then 1, or 2 if no board was left."""


FILES = """## Your files are safe

No command overwrites a file that it reads, or that svi-story did not write. Every path that a command
will write is checked before it starts, and all conflicts of all boards are reported together: *FILE:
BOARD would write its film here, but this was not written by svi-story; move it away, or choose another
folder with -o*. Such a board is refused (exit code 2 if no other is left); the others are rendered.

- **A file belongs to svi-story** if the ledger in the cache (`ledger/`) lists it with the content that
  was written, or if the file itself says so: a film by its XMP metadata or by the record beside it; a
  record, contact sheet, review, timeline, bundle or media file by its format. So files of older versions
  are replaced as before. The exception is an `.srt` that an older version exported: nothing in it says
  where it comes from, so move it away to export again.
- **Files that were changed since they were written.** Captions, records, contact sheets, partial films
  and media files are kept, with a warning, and the film is rendered. For a film, a timeline, a bundle or
  a review the command refuses: move the file away, or choose another folder.
- **Films of other boards.** If two boards of the same name would write the same film, the second is
  refused as long as the first board exists. You may move a board, and copy a project.
- **Symbolic links** are never replaced. A film that is up to date may be one.
- **`pick`** writes `pick` and `takes` into a board and changes no other byte of it. Where that is impossible,
  or the board is changed by another program at the same moment, it changes nothing and says so.
- **`new` and `import`** only create files. **`models download`** replaces only files that it downloaded
  itself and that have not changed since.
- A file that appears at the film's path while the film is rendered is kept as well: the board fails, and
  when the file has been moved away, the same command completes the film in seconds.
"""


def cli_reference() -> str:
    """Every command's help, as one Markdown page."""
    parts = [f"# Commands\n\nGenerated from the output of `--help` by `make docs`.\n\n{SEVERAL}\n", FILES]
    for words in COMMANDS:
        environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
        output = CliRunner().invoke(app, [*words, "--help"], env=environment, prog_name="svi-story").stdout
        text = "\n".join(line.rstrip() for line in output.strip().splitlines())
        parts.append(f"## `{' '.join(('svi-story', *words))}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def schema() -> str:
    """The storyboard's JSON Schema."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


SIZES = (("480p", Size(832, 480)), ("720p", Size(1280, 720)))
FRAMES, PASSES = 81, 100
"""Of a clip at `preset: quality`: 50 steps with guidance."""


def memory_table() -> str:
    """What each memory mode needs for the published models, 81 frames, as a Markdown table."""
    titles = (
        "weights",
        "mode",
        "sampling",
        "decoding",
        "text",
        "GPU, at most",
        "RAM, at least",
        "RAM, better",
    )
    rows = [f"| size | {' | '.join(titles)} |", f"|{'---|' * 9}"]
    for (name, size), weights in product(SIZES, PRECISIONS):
        needs = needs_of(A14B, 2, size, FRAMES, int8=weights == "int8")
        for mode in MODES:
            need = needs[mode]
            phases = (need.sampling.total, need.decoding.total, need.text.total)
            cells = [f"{name} ({size})", weights, f"`{mode}`", *map(gib, phases), f"**{gib(need.gpu)}**"]
            rows.append(f"| {' | '.join([*cells, gib(need.ram), gib(need.ram_kept)])} |")
    return "\n".join(rows) + "\n"


def free_on(card: int, ram: int) -> FreeMemory:
    """What is free on a machine that is sold with so many GB: 97 % of the card, all but 4 GiB of the RAM."""
    return FreeMemory(card * GIB * 97 // 100, (ram - 4) * GIB)


def card_table(rams: Sequence[int]) -> str:
    """What `auto` chooses on machines, as a Markdown table; those with the same plan are in one row."""
    titles = ("GPU", "size", "weights", "RAM", "`auto` chooses", "GPU memory", "RAM", "copied", "read", "VAE")
    rows = [f"| {' | '.join(titles)} |", f"|{'---|' * 10}"]
    for card, (name, size), weights in product((12, 16, 24, 32, 48, 80, 141), SIZES, PRECISIONS):
        needs = needs_of(A14B, 2, size, FRAMES, int8=weights == "int8")
        plans = [(tuple(card_cells(free_on(card, ram), needs, size, weights)), ram) for ram in rams]
        for cells, alike in groupby(plans, key=lambda plan: plan[0]):
            machines = ", ".join(str(ram) for _, ram in alike)
            rows.append(f"| {' | '.join([f'{card} GB', name, weights, f'{machines} GB', *cells])} |")
    return "\n".join(rows) + "\n"


def card_cells(free: FreeMemory, needs: Needs, size: Size, weights: str) -> list[str]:
    """The plan for one machine and size; what is copied and read per clip."""
    try:
        plan = choose("auto", free, needs)
    except InputError:
        return ["does not fit", *["-"] * 5]
    expert, need = needs.expert, needs[plan.mode]
    streamed = (expert.blocks - plan.resident_blocks) * expert.block if plan.mode == "stream" else 0
    gpu = need.sampling.total + plan.resident_blocks * expert.block
    if plan.mode == "resident":
        gpu = need.gpu
    ram = HOST if plan.mode == "resident" else need.ram_kept if plan.keep else HOST + streamed
    loaded = 0 if plan.mode == "resident" else 2 * (expert.whole - streamed)
    sources, prepared = 2 * 4 * A14B.expert, 2 * expert.whole
    read = "-" if plan.keep else gib(sources)
    if not plan.keep and weights == "int8":
        read = f"{gib(prepared)} ({gib(sources)})"
    vae = "whole"
    if need.decoding.total > free.vram:
        fits = (n for n in STRIPS if vae_need(A14B, size, FRAMES, n).minimum <= free.vram)
        vae = next((f"{n} strips" for n in fits), "tiles")
    what = f"`{plan.mode}`" + (f", {plan.resident_blocks} of {expert.blocks} blocks stay" if streamed else "")
    moved = loaded + PASSES * streamed
    return [what, gib(gpu), gib(ram), gib(moved) if moved else "-", read, vae]


def tables_page(page: str) -> str:
    """A page with new tables of memory."""
    for name, table in (
        ("modes", memory_table()),
        ("cards", card_table((32, 64, 128))),
        ("cards with 64 GB", card_table((64,))),
    ):
        block = re.compile(rf"(?<=<!-- {name}, generated by `make docs` -->\n).*?(?=<!-- end -->)", re.DOTALL)
        if found := block.search(page):
            page = page[: found.start()] + table + page[found.end() :]
    return page


QUALITY = Path(__file__).parents[1] / "benchmarks" / "results" / "quality.md"
"""What `benchmarks/quality.py --write` leaves."""


def quality_page(page: str) -> str:
    """docs/quality.md with the facts and tables of the benchmark's result, where there is one."""
    result = QUALITY.read_text("utf-8") if QUALITY.exists() else ""
    parts = re.split(r"^## (.*)\n\n", result, flags=re.MULTILINE)
    measured = dict(zip(parts[1::2], parts[2::2], strict=True))
    measured["measured"] = parts[0].partition("\n\n")[2]

    def table(found: re.Match[str]) -> str:
        told = measured.get(found[1], "").strip() or "Not measured yet."
        return f"<!-- {found[1]}, from the benchmark's result -->\n{told}\n<!-- end -->"

    marks = r"<!-- (.*?), from the benchmark's result -->\n.*?<!-- end -->"
    return re.sub(marks, table, page, flags=re.DOTALL)


MODELS: tuple[type[BaseModel], ...] = (PlanSummary, StatesSummary, TakesSummary, ReviewSummary, Record)
"""What is printed or written as JSON."""


TOY = Path(__file__).parents[1] / "toy/models"
"""The toy's checkpoint, with its log and its evaluation."""
RETURN = 3
"""The clip of toy/evaluate.py's stories in which the creature comes back."""


def toy_card(page: str) -> str:
    """The toy's card with its tables of training and evaluation, from the numbers beside it."""
    for name, table in (("training", training_table()), ("evaluation", evaluation_table())):
        block = re.compile(rf"(?<=<!-- {name}, generated by `make docs` -->\n).*?(?=<!-- end -->)", re.DOTALL)
        if found := block.search(page):
            page = page[: found.start()] + table + page[found.end() :]
    return page


def training_table() -> str:
    """Steps, minutes and the last loss of every stage."""
    lines = ["| stage | steps | minutes | last loss |", "|---|---|---|---|"]
    log = [json.loads(line) for line in (TOY / "training.jsonl").read_text("utf-8").splitlines()]
    for stage in dict.fromkeys(line["stage"] for line in log if "step" in line):
        told = [line for line in log if line["stage"] == stage]
        loss = next((f"{line['loss']:.3g}" for line in reversed(told) if "loss" in line), "-")
        psnr = next((f"; {line['judged']:.1f} dB" for line in reversed(told) if "judged" in line), "")
        lines.append(f"| `{stage}` | {told[-1]['step']} | {told[-1]['seconds'] / 60:.0f} | {loss}{psnr} |")
    return "\n".join(lines) + "\n"


def evaluation_table() -> str:
    """What toy/evaluate.py found, of all its stories; "-": that was not evaluated."""
    if not (TOY / "evaluation.json").exists():
        return "Not evaluated yet.\n"
    found = json.loads((TOY / "evaluation.json").read_text("utf-8"))
    stories = found["stories"]

    def share(name: str, what: str, clips: slice) -> str:
        if name not in found:
            return "-"
        scores = [score[what] for score in found[name][clips]]
        return f"{sum(hits for hits, _ in scores) / (len(scores) * stories):.2f}"

    back, last, every = slice(RETURN, RETURN + 1), slice(-1, None), slice(None)
    empty = ", anchor empty from the third clip on"
    rows = (
        ("away and back: clips that obey", "away and back", "obeyed", every, ""),
        ("away and back: the right colour on return", "away and back", "colour", back, ""),
        ("the same, the anchor empty from the third clip on", "away and back", "colour", back, empty),
        ("away and back: the right kind on return", "away and back", "kind", back, ""),
        ("in sight: clips that obey", "in sight", "obeyed", every, ""),
        ("in sight: the right kind at the end of a clip", "in sight", "kind", every, ""),
        ("in sight: the hat is still there at the end", "in sight", "hat", last, ""),
    )
    lines = [
        "| share of the stories | SVI 2.0 | true films | SVI 2.0 Pro | true films |",
        "|---|---|---|---|---|",
    ]
    for label, story, what, clips, anchor in rows:
        cells = []
        for variant in ("2.0", "2.0-pro"):
            cells.append(share(f"{story}, {variant}{anchor}", what, clips))
            true = share(f"{story}, {variant}, true films through the VAE", what, clips)
            cells.append("-" if anchor else true)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    psnr = [
        found[f"{story}, {variant}, PSNR"]
        for story in ("away and back", "in sight")
        for variant in ("2.0", "2.0-pro")
        if f"{story}, {variant}, PSNR" in found
    ]
    usual = found["films as in training, PSNR"]
    kept = f"the VAE keeps {min(psnr):.1f} to {max(psnr):.1f} dB of these clips (mean of the clips), and"
    kept += f" {usual:.1f} dB of {stories} others that were drawn as those of its training."
    steps = f"{stories} stories, {found['steps']} steps; {kept}"
    return "\n".join([*lines, "", steps]) + "\n"


def json_page(page: str) -> str:
    """docs/json.md with new tables of models and events."""
    tables = {model.__name__: "\n".join(model_tables(model)) for model in MODELS}
    for name, table in {**tables, "events": event_table()}.items():
        block = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        found = block.search(page)
        assert found, name
        page = page[: found.start()] + table + page[found.end() :]
    return page


def event_table() -> str:
    """Every event with its fields, from the docstrings in `svi_story/events.py`, as a Markdown table."""
    found: dict[str, tuple[dict[str, str], str]] = {"Event": ({}, "")}
    rows = ["| event | what it means | fields besides `event` |\n|---|---|---|"]
    tree = ast.parse(Path(events.__file__).read_text("utf-8"))
    for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        fields = dict(found[ast.unparse(node.bases[0])][0]) if node.bases else {}
        for part, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(part, ast.AnnAssign):
                about = ast.literal_eval(after.value) if isinstance(after, ast.Expr) else ""
                fields[ast.unparse(part.target)] = about.rstrip(".")
        found[node.name] = fields, " ".join((ast.get_docstring(node) or "").split())
    for name, (fields, about) in found.items():
        if name not in ("Event", "BoardEvent", "SegmentEvent"):
            explained = (f"`{field}`" + (f" ({what})" if what else "") for field, what in fields.items())
            rows.append(f"| `{json_name(name)}` | {about} | {', '.join(explained)} |")
    return "\n".join(rows) + "\n"


def model_tables(model: type[BaseModel], path: str = "", known: set[Any] | None = None) -> Iterator[str]:
    """The fields of a model and of the models in it, each once, as Markdown tables."""
    known = set() if known is None else known
    known.add(model)
    assert model.__doc__, model
    about = " ".join(model.__doc__.split())
    yield f"`{path}`: {about[0].lower()}{about[1:]}\n" if path else f"{about}\n"
    yield "| field | type | what |\n|---|---|---|"
    for name, field in model.model_fields.items():
        yield f"| `{name}` | {type_name(field.annotation)} | {field.description or ''} |"
    yield ""
    for name, field in model.model_fields.items():
        for part in (each for each in models_in(field.annotation) if each not in known):
            origin = get_origin(field.annotation)
            place = f"{name}[]" if origin is tuple else f"{name}.*" if origin is dict else name
            yield from model_tables(part, f"{path}.{place}".lstrip("."), known)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


SIMPLE: dict[Any, str] = {
    Any: "any",
    str: "text",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def type_name(annotation: Any) -> str:
    """A type, as JSON calls it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_name, parts)))
    if origin is tuple:
        return f"array of {type_name(parts[0])}"
    return SIMPLE.get(annotation, "object")


if __name__ == "__main__":
    here = Path(__file__).parent
    (here / "cli.md").write_text(cli_reference(), "utf-8")
    (here / "storyboard.schema.json").write_text(schema(), "utf-8")
    for page in (here / "memory.md", here.parent / "README.md"):
        page.write_text(tables_page(page.read_text("utf-8")), "utf-8")
    quality_md = here / "quality.md"
    quality_md.write_text(quality_page(quality_md.read_text("utf-8")), "utf-8")
    json_md = here / "json.md"
    json_md.write_text(json_page(json_md.read_text("utf-8")), "utf-8")
    card = TOY / "README.md"
    card.write_text(toy_card(card.read_text("utf-8")), "utf-8")
