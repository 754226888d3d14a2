"""What does each way to render do to a chain of clips? Judged on the toy, whose clips mean something."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.append(str(Path(__file__).parents[1] / "toy"))

import numpy as np
from common import HERE, PROGRAM, Finding, Result, Table, finish, options, progress, shown, workplace
from PIL import Image
from quality_variants import FAULT, FIRST_SEED, IN_SIGHT, OVERLAPS, REFERENCE, SVI, VARIANTS, chains
from world import COLOURS, NEGATIVE, Look, Story, obeys, recognise

from svi_story import api
from svi_story.engines.base import Carry
from svi_story.engines.svi import preview
from svi_story.engines.svi.engine import Svi
from svi_story.engines.svi.options import SviOptions
from svi_story.engines.svi.weights.locate import ModelFolders
from svi_story.render.smoke import NoCheckpoint
from svi_story.review.film import review_film

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Mapping, Sequence

    from common import Cell
    from numpy.typing import NDArray
    from quality_variants import Chain

    from svi_story.cache.entry import Entry
    from svi_story.cache.store import Store
    from svi_story.render.jobs import Job

MODELS = HERE.parent / "toy" / "models"
FPS = 8
"""So that a chain lasts long enough for the review's comparisons over ten seconds."""
ABOUT = (
    "The toy checkpoint: films of 64x64 pixels of a drawn world, two small experts. Only the order of the "
    "rows may carry over to the real model, if that: its weights have outliers, its steps are guided, and "
    "its films have far more detail to lose."
)
COLUMNS = (
    "*clip n*: root mean square of the difference between the latents and the reference's, in standard "
    "deviations, mean of the chains. *growth*: that of the last clip beside that of the first. *PSNR*: of "
    "the frames, dB. *obeyed*: clips that show what their prompt asks for. *colour*, *kind*, *hat*: at the "
    "end of the clips where the creature should be there, whether it is the anchor's, and wears a hat if the "
    "story says so; a missing creature counts as wrong. *drawn, through the VAE*: no model, but the film as "
    "the world draws it, the best that judge and review can be shown. Rows with half as many clips were "
    "rendered for one kind of story with 2.0 Pro, and for the other with 2.0."
)
SHOWN = ("4 steps", "10 steps", "50 steps", "--dtype bfloat16", "--weights int8", "GGUF Q8_0", "GGUF Q4_0")
"""Among the findings; all are in the table."""
REVIEWED = (
    "*verdicts* are about degradation, one for each chain. Faults are put in on purpose: the files of the "
    "experts or LoRAs are changed, or the engine is given another anchor than the board's, or nothing of the "
    "clip before."
)


@dataclass(frozen=True)
class Setting:
    """What the command line says."""

    models: Path
    work: Path
    clips: int = 10
    steps: int = 20
    stories: int = 1
    """Of each kind, for each variant of SVI."""
    svi: tuple[str, ...] = SVI
    """The variants of SVI."""
    few: bool = False
    """Half of the chains for every way to render."""
    quick: bool = False
    """Only one chain."""

    def chains(self, name: str) -> list[Chain]:
        """Those that are rendered in a variant."""
        found = chains(self.clips, self.stories, self.svi, half=self.few or VARIANTS[name].half)
        return found[:1] if self.quick else found


# --- rendering


def folder_of(setting: Setting, name: str) -> Path:
    """Where a variant has its boards, its models where they are others, and its cache."""
    return setting.work / re.sub(r"\W+", "-", name).strip("-")


def write_boards(setting: Setting, name: str) -> Path:
    """A variant's boards and anchors; their folder."""
    variant, folder = VARIANTS[name], folder_of(setting, name) / "boards"
    folder.mkdir(parents=True, exist_ok=True)
    for chain in setting.chains(name):
        place, look = chain.moments[0].story.place, chain.moments[0].story.look
        other = Story(
            place, Look((look.colour + 4) % len(COLOURS), 1 - look.kind), chain.moments[0].story.state
        )
        pictures = {"": chain.anchor, "-another": other.picture(), "-empty": chain.empty}
        for suffix, picture in pictures.items():
            Image.fromarray(picture[0]).save(folder / f"{chain.name}{suffix}.png")
        np.save(folder / f"{chain.name}.npy", chain.drawn)
        engine = {"name": "svi", "variant": chain.svi, "steps": setting.steps, "guidance": 1}
        board = {
            "version": 1,
            "reference": f"{chain.name}.png",
            "resolution": "64x64",
            "fps": FPS,
            "negative_prompt": NEGATIVE,
            "engine": {**engine, "max_frames": 17, **variant.engine},
            "clips": [
                {"prompt": text, "seed": chain.seed + 1000 * at + variant.seed}
                for at, text in enumerate(chain.prompts)
            ],
        }
        (folder / f"{chain.name}.yaml").write_text(json.dumps(board), "utf-8")
    return folder


def _options(setting: Setting, name: str) -> api.Options:
    variant, folder = VARIANTS[name], folder_of(setting, name)
    models = [setting.models if variant.models is None else folder / "models"]
    if variant.prepared:
        models.append(folder / "prepared")
    given = {"dtype": "float32", **variant.options, "models": models}
    return {**given, "cache": folder / "cache", "output": folder / "films"}  # type: ignore[typeddict-item]


def render(setting: Setting, name: str) -> str:
    """Render a variant's chains, as far as its cache lacks them; why that is impossible, or nothing."""
    variant, folder = VARIANTS[name], folder_of(setting, name)
    boards = write_boards(setting, name)
    models = folder / "models"
    if variant.models and not models.exists():
        new = Path(shutil.copytree(setting.models, folder / "models-unfinished", dirs_exist_ok=True))
        variant.models(new)
        new.rename(models)
    if variant.prepared and not (folder / "prepared").exists():
        given = ("--models", setting.models, "--dtype", "float32", "--to", folder / "prepared")
        subprocess.run((PROGRAM, "models", "prepare", boards, *given), check=True, capture_output=True)
    try:
        with variant.fault():
            outcomes = api.render(boards, preview_every=0, retries=0, **_options(setting, name))
    except api.StoryError as error:
        return str(error)
    return next((each.message for each in outcomes if each.message), "")


# --- judging


@dataclass(frozen=True)
class Clip:
    """One clip beside the reference's, and beside what was asked for."""

    number: int
    rms: float
    """Of the latents' difference, in standard deviations of the reference's."""
    error: float
    """Mean square of the frames' difference, in units of the range."""
    obeyed: bool
    right: tuple[bool, bool, bool] | None
    """Colour, kind and hat; None where nobody should be there."""


@dataclass(frozen=True)
class Judged:
    """What became of a variant's chains."""

    name: str
    clips: tuple[Clip, ...]
    warnings: tuple[tuple[str, ...], ...]
    """Of the review, for each chain."""
    verdicts: tuple[str, ...]

    def warnings_by_kind(self) -> dict[str, float]:
        """How often the review warns of each kind, per chain."""
        counts = Counter(kind for chain in self.warnings for kind in chain)
        return {kind: count / len(self.warnings) for kind, count in counts.items()}

    def rms(self, number: int) -> float:
        """The mean of all chains' clips of a number."""
        return float(np.mean([clip.rms for clip in self.clips if clip.number == number]))

    def psnr(self, number: int) -> Cell:
        """In dB, of all chains' clips of a number together."""
        error = float(np.mean([clip.error for clip in self.clips if clip.number == number]))
        return float(-10 * np.log10(error)) if error else "equal"


def _jobs(setting: Setting, name: str) -> list[Job]:
    boards = folder_of(setting, name) / "boards"
    jobs, rejected, _ = api.prepare_jobs([boards], _options(setting, name), lambda _event: None)
    assert not rejected, rejected
    return jobs


def _entries(job: Job) -> tuple[Store, list[Entry]]:
    store = job.place.store(lambda _event: None)
    entries = [store.entry(segment.key) for segment in job.segments]
    return store, [entry for entry in entries if entry is not None]


def _frames(entry: Entry) -> NDArray[np.uint8]:
    with entry.frames() as frames:
        return np.stack([frames[at] for at in range(len(frames))])


def judge(setting: Setting, name: str) -> Judged:
    """Compare a variant's chains with the reference's and with what was asked for, and review them."""
    known = {chain.name: chain for chain in setting.chains(name)}
    wanted = {job.place.board.stem: job for job in _jobs(setting, REFERENCE)}
    clips: list[Clip] = []
    warnings, verdicts = [], []
    for job in _jobs(setting, name):
        chain = known[job.place.board.stem]
        store, mine = _entries(job)
        _, others = _entries(wanted[chain.name])
        assert len(mine) == len(others) == setting.clips, name
        for number, (entry, other) in enumerate(zip(mine, others, strict=True)):
            clips.append(_judge_clip(chain, number, entry, other))
        found = review_film(job.plan, store.entry, lambda _event: None)
        warnings.append(tuple(each.what or each.kind for each in found.findings))
        verdicts.append(found.verdict)
    return Judged(name, tuple(clips), tuple(warnings), tuple(verdicts))


def _judge_clip(chain: Chain, number: int, entry: Entry, reference: Entry) -> Clip:
    moment, frames, wanted = chain.moments[number], _frames(entry), _frames(reference)
    latents, right = (each.latents()["latents"].astype(np.float64) for each in (entry, reference))
    story, state = moment.story, moment.story.state
    seen = recognise(frames[-1], story.place)
    looks = (False, False, False)
    if seen is not None:
        look, hat = seen
        looks = (look.colour == story.look.colour, look.kind == story.look.kind, hat == state.hat)
    return Clip(
        number,
        float(np.sqrt(np.square(latents - right).mean()) / right.std()),
        float(np.square(frames / 255.0 - wanted / 255.0).mean()),
        obeys(moment.action, frames, story.place, OVERLAPS[chain.svi] if number else 1),
        None if state.x is None else looks,
    )


# --- the live preview


def explained(shown_pictures: Sequence[NDArray[np.uint8]], frames: NDArray[np.uint8]) -> float:
    """R²: the share of the variance of a decoded clip, scaled down, that its small pictures explain."""
    rows, columns = shown_pictures[0].shape[:2]
    wanted = np.stack(
        [
            preview.scaled_down(frames[preview.shown_by(at)], rows, columns)
            for at in range(len(shown_pictures))
        ]
    )
    left = np.square(wanted - np.stack(list(shown_pictures))).sum()
    return float(1 - left / np.square(wanted - wanted.mean((0, 1, 2))).sum())


def follow_preview(setting: Setting) -> list[tuple[Cell, ...]]:
    """What the live preview shows after each quarter of the steps, beside the clip that comes of it."""
    at = [max(1, round(setting.steps * share)) for share in (0.25, 0.5, 0.75, 1)]
    found: dict[str, list[list[float]]] = {"first clip, fitted to the anchor": [], "later clips": []}
    best: dict[str, list[float]] = {name: [] for name in found}
    for job in _jobs(setting, REFERENCE):
        given = SviOptions(ModelFolders((setting.models,)), dtype="float32", device="cpu")
        with Svi(given) as svi:
            segments = job.segments[:3]
            svi.prepare(segments)
            carry = None
            for number, segment in enumerate(segments):
                shown_after: dict[int, Sequence[NDArray[np.uint8]]] = {}

                def on_step(
                    done: int,
                    _steps: int,
                    kept: dict[int, Sequence[NDArray[np.uint8]]] = shown_after,
                    svi: Svi = svi,
                ) -> None:
                    kept[done] = svi.preview()

                latents = svi.sample(segment, carry, NoCheckpoint(), on_step)
                frames = np.stack(list(svi.decode(segment, latents)))
                name = list(found)[number > 0]
                found[name].append([explained(shown_after[step], frames) for step in at])
                best[name].append(_best(np.asarray(latents["latents"]), frames))
                carry = Carry("svi", latents, list(frames[-5:]))
    return [
        (name, *map(float, np.mean(rows, axis=0)), float(np.mean(best[name])))
        for name, rows in found.items()
        if rows
    ]


def _best(latents_BCTHW: NDArray[np.floating], frames: NDArray[np.uint8]) -> float:  # noqa: N803
    """R² with factors that are fitted to the clip itself."""
    import torch

    factors = preview.fit(latents_BCTHW[0], list(frames))
    return explained(preview.project(torch.tensor(latents_BCTHW), factors), frames)


# --- the report


def quality_row(judged: Judged, clips: int) -> tuple[Cell, ...]:
    """A row of the table."""
    places = sorted({0, clips // 2, clips - 1})
    first, last = judged.rms(0), judged.rms(clips - 1)
    growth = f"{last / first:.1f}" if first else None
    looks = [clip.right for clip in judged.clips if clip.right is not None]
    scores = [_score([look[what] for look in looks]) for what in range(3)]
    obeyed = _score([clip.obeyed for clip in judged.clips])
    distances = [_distance(judged.rms(place)) for place in places]
    return judged.name, *distances, growth, judged.psnr(0), judged.psnr(clips - 1), obeyed, *scores


def _distance(value: float) -> str:
    return f"{value:.2g}"


def _score(hits: Sequence[bool]) -> str:
    return f"{sum(hits)}/{len(hits)}"


def review_row(judged: Judged) -> tuple[Cell, ...]:
    """A row of the table of reviews."""
    kinds = Counter(kind for chain in judged.warnings for kind in chain)
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    verdicts = Counter(judged.verdicts)
    chains_warned = sum(bool(chain) for chain in judged.warnings)
    return (
        judged.name,
        f"{chains_warned}/{len(judged.warnings)}",
        told or "-",
        ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()),
    )


def report(
    setting: Setting, judged: Sequence[Judged], previews: list[tuple[Cell, ...]], missing: Mapping[str, str]
) -> Result:
    """Tables and findings."""
    places = sorted({0, setting.clips // 2, setting.clips - 1})
    clip_names = tuple(f"clip {place + 1}" for place in places)
    columns = (*clip_names, "growth", "PSNR, first", "PSNR, last", "obeyed", "colour", "kind", "hat")
    groups: dict[str, list[Judged]] = {}
    for each in judged:
        groups.setdefault(VARIANTS[each.name].group, []).append(each)
    rows = [quality_row(each, setting.clips) for group in groups.values() for each in group]
    good = [each for each in judged if VARIANTS[each.name].group != FAULT]
    faults = groups.get(FAULT, [])
    quarters = ("25 % of the steps", "50 %", "75 %", "all", "fitted to itself")
    tables = (
        Table("Chains beside the reference", ("variant", *columns), tuple(rows)),
        Table(
            "What the review says",
            ("variant", "chains with warnings", "warnings", "verdicts"),
            tuple(review_row(each) for each in (*good, *faults)),
        ),
        Table("R² of the live preview", ("clips", *quarters), tuple(previews)),
    )
    findings = [
        Finding(
            f"{each.name}: distance in clips 1 and {setting.clips}",
            f"{_distance(each.rms(0))}, {_distance(each.rms(setting.clips - 1))}",
        )
        for each in good
        if each.name in SHOWN
    ]
    usual = judged[0].warnings_by_kind()
    for what, some in (("without a fault", good[1:]), ("with a fault", faults)):
        hits = [
            any(often > 2 * usual.get(kind, 0) for kind, often in each.warnings_by_kind().items())
            for each in some
        ]
        name = f"review: variants {what}, with more than twice the reference's warnings of a kind"
        findings.append(Finding(name, _score(hits)))
    findings += [Finding(f"live preview, {row[0]}: R² at the end", shown(row[4])) for row in previews]
    notes = [ABOUT, COLUMNS, REVIEWED]
    for why in dict.fromkeys(missing.values()):
        names = ", ".join(f"*{name}*" for name, each in missing.items() if each == why)
        notes.append(f"Not rendered ({why}): {names}.")
    settings: dict[str, Cell] = {
        "chains": len(setting.chains(REFERENCE)),
        "SVI": " and ".join(setting.svi),
        "clips": setting.clips,
        "steps": setting.steps,
        "first seed": FIRST_SEED,
    }
    question = "what does each way to render do to a chain of clips, and what do review and preview see?"
    return Result("quality", question, settings, tables, tuple(findings), tuple(notes))


def measure(
    setting: Setting, names: Sequence[str], minutes: float = 60, processes: int = 0
) -> tuple[list[Judged], dict[str, str]]:
    """Render and judge variants, the reference among them; and what was not rendered, with why.

    Without processes, everything happens here. What is rendered stays in the work folder, so the same call
    again continues.
    """
    names = [REFERENCE, *(name for name in names if name != REFERENCE)]
    if not processes:
        failed = {name: why for name in names if (why := render(setting, name))}
        return [judge(setting, name) for name in names if name not in failed], failed
    os.environ |= {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(setting.work / "user")}
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures = {pool.submit(render, setting, name): name for name in names}
        failed = dict.fromkeys(names, "no time left")
        try:
            for future in as_completed(futures, timeout=60 * minutes):
                name = futures[future]
                failed[name] = future.result()
                progress(f"{name}: {failed[name] or 'rendered'}")
        except TimeoutError:
            for future in futures:
                future.cancel()
        done = [name for name in names if not failed[name]]
        assert REFERENCE in done, failed
        judged = list(pool.map(judge, [setting] * len(done), done))
    return judged, {name: why for name, why in failed.items() if why}


def command_line() -> ArgumentParser:
    parser = options(__doc__)
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--work", type=Path, help="where what is rendered stays, to continue from it")
    parser.add_argument("--stories", type=int, default=1, help="of each kind, for each variant of SVI")
    parser.add_argument("--svi", nargs="+", default=list(SVI), choices=SVI, help="the variants of SVI")
    parser.add_argument("--few", action="store_true", help="half of the chains for every way to render")
    parser.add_argument("--clips", type=int, default=10, help="of a chain")
    parser.add_argument("--steps", type=int, default=20, help="of the reference")
    parser.add_argument("--minutes", type=float, default=30, help="after which no variant is begun")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--processes", type=int, default=2, help="that render at the same time")
    parser.add_argument("--quick", action="store_true", help="one chain of two clips, two steps: a try")
    return parser


def check_work(work: Path, models: Path) -> None:
    """Refuse a work folder in which other models were used."""
    digest = hashlib.sha256()
    for file in sorted(models.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    known = work / "models.sha256"
    work.mkdir(parents=True, exist_ok=True)
    if known.exists() and known.read_text("utf-8") != digest.hexdigest():
        raise SystemExit(f"{work} has what other models rendered: choose another --work, or delete it")
    known.write_text(digest.hexdigest(), "utf-8")


def main(words: Sequence[str] | None = None) -> None:
    parser = command_line()
    chosen = parser.parse_args(words)
    if not 1 <= chosen.clips <= len(IN_SIGHT):
        parser.error(f"--clips: the stories have {len(IN_SIGHT)} clips; use 1 to {len(IN_SIGHT)}")
    if min(chosen.stories, chosen.steps) < 1:
        parser.error("--stories and --steps are at least 1")
    if not chosen.models.is_dir():
        parser.error(f"--models {chosen.models}: there is no such folder")
    if chosen.quick:
        chosen.clips, chosen.steps = 2, 2
    with nullcontext(chosen.work) if chosen.work else workplace() as folder:
        check_work(folder, chosen.models)
        setting = Setting(
            *(chosen.models.absolute(), folder.absolute(), chosen.clips, chosen.steps, chosen.stories),
            svi=tuple(chosen.svi),
            few=chosen.few,
            quick=chosen.quick,
        )
        judged, missing = measure(setting, chosen.only, chosen.minutes, chosen.processes)
        measured = (*missing, *(each.name for each in judged))
        missing |= {name: "not asked for" for name in VARIANTS if name not in measured}
        finish(report(setting, judged, follow_preview(setting), missing), write=chosen.write)


if __name__ == "__main__":
    main()
