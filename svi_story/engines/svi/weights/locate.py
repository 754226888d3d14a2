"""Which of the weights in the models folders are used: by sha256, then by tensors, then by name."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svi_story.commands import suggest
from svi_story.engines.svi import missing_packages
from svi_story.engines.svi.weights.candidates import EXPERTS, SVI_LAYERS, Candidate, find_candidates
from svi_story.engines.svi.weights.catalogue import LoraPair, ModelFiles, ModelPaths
from svi_story.engines.svi.weights.folders import expand
from svi_story.engines.svi.weights.lora import known_role, named_role
from svi_story.engines.svi.weights.tensors import title_of
from svi_story.errors import InputError, Problem
from svi_story.settings import user_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from svi_story.engines import Digest
    from svi_story.engines.svi.weights.candidates import Expert
    from svi_story.engines.svi.weights.catalogue import WeightPart
    from svi_story.engines.svi.weights.lora import LoraRole
    from svi_story.enginespec.sampling import Variant

ROLES = (
    *("high", "low", "vae", "text_encoder", "tokenizer", "svi_high", "svi_low", "svi_pro_high"),
    *("svi_pro_low", "distill_high", "distill_low"),
)
"""As `weights` in svi-story.toml names them."""
WHAT = {
    "high": "the high-noise expert",
    "low": "the low-noise expert",
    "vae": "the VAE",
    "text_encoder": "the text encoder",
    "tokenizer": "the tokenizer",
    "svi_high": "the SVI 2.0 LoRA of the high-noise expert",
    "svi_low": "the SVI 2.0 LoRA of the low-noise expert",
    "svi_pro_high": "the SVI 2.0-pro LoRA of the high-noise expert",
    "svi_pro_low": "the SVI 2.0-pro LoRA of the low-noise expert",
    "distill_high": "the LightX2V LoRA of the high-noise expert",
    "distill_low": "the LightX2V LoRA of the low-noise expert",
}
BASE = ("high", "low", "vae", "text_encoder", "tokenizer")
SVI: dict[Variant, tuple[str, str]] = {
    "2.0": ("svi_high", "svi_low"),
    "2.0-pro": ("svi_pro_high", "svi_pro_low"),
}
DISTILL = ("distill_high", "distill_low")
KNOWN_EXPERTS: dict[str, Expert] = {
    "c21c21efa368d529a982a7d89dd11d86608b5937cae9a125d0ffe5491918a100": "high",
    "edb89340c8a6fbf1a70e76a839ae01eaf7d289f05ea1ebd6b1a3fc6f533826e9": "low",
    "6122e79d55e0f235698d11d657f3b196c5273c830da00b2b013c5a048d5e6a42": "high",
    "5471a457b6ac404202a5fbe6c11595a3d5641fc766b00f38763f72303fffc21e": "low",
    "b3a6e732feb5fd5fa35f5e3ef612fa1f0a77dc66601fbf999d4f84a01e7120a6": "high",
    "3338c9e672ad9e406a28b38231d6c9d94bf63ab73c3940b91428321993491bb8": "low",
}
"""The sha256 of published files (fp16, ComfyUI's fp8, kijai's). Both experts' tensors have the same names."""


@dataclass(frozen=True)
class ModelFolders:
    """Where weights are searched, and the files that the user chose."""

    folders: tuple[Path, ...]
    chosen: tuple[tuple[str, Path], ...] = ()
    """Roles and their files."""

    @property
    def option(self) -> tuple[str, ...]:
        """The `--models` option for this; empty for the default."""
        names = [str(folder) for folder in self.folders]
        return () if names == ["models"] else tuple(word for name in names for word in ("--models", name))

    def download_target(self) -> Path:
        """The folder that downloads go to: the first that is one."""
        folders = [folder for folder in self.folders if not folder.is_file()]
        return expand(folders[0])[0] if folders else Path("models")


@dataclass(frozen=True)
class Weights:
    """Everything found, and what is used for each role."""

    where: ModelFolders
    candidates: tuple[Candidate, ...]
    used: Mapping[str, Candidate]
    notes: tuple[str, ...]
    """Where there was a choice."""

    @property
    def prepared(self) -> tuple[Path, ...]:
        """Experts that `models prepare` wrote, for whatever sources and LoRAs."""
        return tuple(each.files[0] for each in self.candidates if each.kind == "prepared")

    @property
    def experts(self) -> dict[str, tuple[Path, ...]]:
        """The files of each expert that is used."""
        return {expert: self.used[expert].files for expert in EXPERTS if expert in self.used}

    def models(self) -> ModelPaths:
        """The files of every model. Raises InputError that names all that is missing."""
        self.require(BASE)
        high, low, vae, text_encoder = (
            ModelFiles(self.used[role].files, self.used[role].config) for role in BASE[:4]
        )
        return ModelPaths(high, low, vae, text_encoder, self.used["tokenizer"].files[0])

    def pair(self, roles: tuple[str, str]) -> LoraPair:
        """A pair of LoRAs. Raises InputError that names what is missing."""
        self.require(roles)
        high, low = (self.used[role].files[0] for role in roles)
        return LoraPair(high, low)

    def require(self, roles: Sequence[str]) -> None:
        """Raises InputError unless there is a usable file for each role: what is wrong, what is missing."""
        missing = [role for role in roles if role not in self.used]
        if missing:
            raise InputError(*self.problems(missing), self.not_found(missing))

    def problems(self, missing: Sequence[str]) -> list[Problem]:
        """Why files that could have these roles cannot be used."""
        found = [each for each in self.candidates if any(could_be(each, role) for role in missing)]
        problems = [problem for each in found for problem in each.problems[:3]]
        experts = (each for each in self.candidates if each.kind == "expert" and not each.problems)
        unnamed = [
            str(each.files[0]) for each in experts if not each.expert and each not in self.used.values()
        ]
        if {*missing} & {*EXPERTS}:
            what = (
                "is an expert, but its name does not say which; put high or low into its name, or name it as "
                "high or low under weights in svi-story.toml"
            )
            problems += [Problem(what, file=name) for name in unnamed]
        return problems

    def not_found(self, missing: Sequence[str]) -> Problem:
        """One line for everything that is missing, with the command that downloads it and nothing else."""
        plain, pro = ({*SVI[variant]} for variant in ("2.0", "2.0-pro"))
        has_pro = pro & {*self.used} and not plain & {*missing, *self.used}
        options: tuple[str, ...] = ("--variant", "2.0-pro") if pro & {*missing} or has_pro else ()
        options += ("--preset", "fast") if {*DISTILL} & {*missing} else ()
        command = suggest("models download", *options, *self.where.option)
        what = ", ".join(WHAT[role] for role in missing)
        remedy = f"download what is missing with: {command} (a preview needs no weights: --engine animatic)"
        if packages := missing_packages():
            remedy += f"; the svi engine also needs {', '.join(packages)}: pip install 'svi-story[svi]'"
        return Problem(f"not found: {what}; {remedy}", file=str(self.where.folders[0]))

    def environment(self) -> dict[str, str]:
        """What the experts call their model, and the models that are not stored as they were published.

        For the record; empty where they call it nothing, and all are.
        """
        experts = [self.used[role] for role in EXPERTS if role in self.used]
        titles = dict.fromkeys(title_of(file) for each in experts for file in each.files[:1])
        title = ", ".join(filter(None, titles))
        models = {role: self.used[role] for role in BASE[:4] if role in self.used}
        stored = [
            f"{role} {each.precision}"
            for role, each in models.items()
            if each.format != "plain" or (role == "vae" and each.precision != "F32")
        ]
        return {**({"model": title} if title else {}), **({"weights": ", ".join(stored)} if stored else {})}

    def status(self, part: WeightPart) -> PartStatus:
        """One part of the download as it lies on the disk."""
        roles = roles_of([part])
        missing = [role for role in roles if role not in self.used]
        if not missing:
            files = tuple(
                file
                for role in roles
                for file in (*self.used[role].files, self.used[role].config)
                if file is not None
            )
            size = sum(file.stat().st_size for file in files)
            return PartStatus(part, files, size, (), "ready")
        there = [each for each in self.candidates if any(could_be(each, role) for role in missing)]
        halves = [self.used[role] for role in roles if role in self.used]
        size = sum(each.bytes for each in (*there, *halves))
        is_broken = any(file.is_file() for each in there for file in each.files[:1] if len(each.files) == 1)
        state = "broken" if is_broken else "incomplete" if size else "missing"
        problems = (*self.problems(missing), self.not_found(missing))
        return PartStatus(part, (), size, problems, state)

    def missing(self, parts: Iterable[WeightPart]) -> list[str]:
        """The roles of these parts that no file has."""
        return [role for role in roles_of(parts) if role not in self.used]


@dataclass(frozen=True)
class PartStatus:
    """One part as it lies on the disk, judged by names, sizes and headers."""

    part: WeightPart
    files: tuple[Path, ...]
    """What the engine would read; empty where something is missing."""
    bytes: int
    """The size of all its files that exist."""
    problems: tuple[Problem, ...]
    state: str
    """ready, missing, incomplete or broken."""


def roles_of(parts: Iterable[WeightPart]) -> list[str]:
    """The roles that parts of the download fill."""
    pairs = {"svi-2.0": SVI["2.0"], "svi-2.0-pro": SVI["2.0-pro"], "distill": DISTILL}
    return [
        role
        for part in parts
        for role in (pairs.get(part.name) or tuple(role for role in BASE if role == part.name))
    ]


def could_be(candidate: Candidate, role: str) -> bool:
    """Whether a file that cannot be used would have a role, by its kind and name."""
    if not candidate.problems:
        return False
    if role in EXPERTS:
        return candidate.kind == "expert" and candidate.expert in (role, None)
    if candidate.kind == "lora":
        return role in _lora_roles(candidate)
    return candidate.kind == role


def prepared_folder() -> Path:
    """Where experts are prepared, unless the user names another folder. It may not exist."""
    return user_cache() / "prepared"


def find_weights(where: ModelFolders, digest: Digest | None = None) -> Weights:
    """Every weight file in the folders, and which is used for each role.

    With `digest` (a file's sha256) the experts that are to be used are compared with the published ones.
    Raises InputError for folders and choices that cannot be read or used.
    """
    found: dict[str, Candidate] = {}
    places = [each for folder in where.folders for each in expand(folder)]
    for candidate in (each for place in (*places, prepared_folder()) for each in find_candidates(place)):
        found.setdefault(os.path.realpath(candidate.files[0]), candidate)  # a hub cache has links
    used: dict[str, Candidate] = {}
    notes: list[str] = []
    problems: list[Problem] = []
    for name, file in where.chosen:
        if name not in ROLES:
            problems.append(Problem(f"weights: {name} is not a role; roles are {', '.join(ROLES)}"))
            continue
        try:
            candidate = _chosen(name, file, digest)
            used[name] = found.setdefault(os.path.realpath(candidate.files[0]), candidate)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    usable = [each for each in found.values() if not each.problems]
    for role, several in (
        *_experts([each for each in usable if each.kind == "expert"], used, digest).items(),
        *((kind, [each for each in usable if each.kind == kind]) for kind in BASE[2:]),
    ):
        if role in used or not several:
            continue
        best, *others = sorted(several, key=lambda each: each.rank)  # stable: folders in the user's order
        used[role] = best
        if others:
            why = "the most precise" if best.rank < others[0].rank else "the first"
            files = f"{best.files[0]} ({best.precision or 'text'})"
            notes.append(f"{WHAT[role].removeprefix('the ')}: {files} is used, {why} of {len(several)}")
    if digest:
        notes += _check_experts([(expert, used[expert]) for expert in EXPERTS if expert in used], digest)
    loras = [each for each in usable if each.kind == "lora"]
    for roles in (*SVI.values(), DISTILL):
        _choose_pair(roles, loras, used, digest)
    return Weights(where, tuple(found.values()), used, tuple(notes))


def _chosen(role: str, file: Path, digest: Digest | None) -> Candidate:
    """The file that the user chose for a role. Raises InputError unless it can be used."""
    if not file.exists():
        what = f"weights: there is no such file for {role}; check the path"
        raise InputError(Problem(what, file=str(file)))
    root = file if file.is_dir() else file.parent
    found = [each for each in find_candidates(root) if file.is_dir() or file in each.files]
    wanted = role if role in BASE[2:] else "expert" if role in EXPERTS else "lora"
    fitting = [each for each in found if each.kind == wanted or (role == "tokenizer" and file in each.files)]
    if len(fitting) != 1:
        kinds = ", ".join(sorted({each.what for each in found})) or "no weights"
        what = f"holds {len(fitting)} of them: {kinds}" if file.is_dir() else f"is another file: {kinds}"
        raise InputError(Problem(f"weights: {role} is {WHAT[role]}, but this {what}", file=str(file)))
    if fitting[0].problems:
        raise InputError(*fitting[0].problems)
    known = KNOWN_EXPERTS.get(digest(fitting[0].files[0])) if digest and role in EXPERTS else None
    if known and known != role:
        what = f"weights: is the {known}-noise expert (by its sha256), not the {role}-noise one; swap the two"
        raise InputError(Problem(what, file=str(file)))
    return fitting[0]


def _experts(
    found: list[Candidate], used: Mapping[str, Candidate], digest: Digest | None
) -> dict[str, list[Candidate]]:
    """The usable files of each expert: by name, unless the sha256 of the one to be used says otherwise."""
    known: dict[Candidate, Expert] = {}

    def expert_of(candidate: Candidate) -> Expert | None:
        return known.get(candidate) or candidate.expert

    def sorted_in() -> dict[str, list[Candidate]]:
        return {expert: [each for each in found if expert_of(each) == expert] for expert in EXPERTS}

    if digest is None:
        return sorted_in()
    hashed: set[Candidate] = set()
    while True:
        best = (min(several, key=lambda each: each.rank, default=None) for several in sorted_in().values())
        new = [each for each in best if each and each not in hashed and not {*EXPERTS} <= used.keys()]
        if not new and not all(sorted_in().values()):  # only now are files hashed that may not be used
            new = [each for each in found if expert_of(each) is None and each not in hashed]
        if not new:
            break
        hashed |= {*new}
        single = [each for each in new if len(each.files) == 1]  # as all published ones are
        roles = {each: KNOWN_EXPERTS.get(digest(each.files[0])) for each in single}
        known |= {each: role for each, role in roles.items() if role}
    return sorted_in()


def _check_experts(experts: list[tuple[Expert, Candidate]], digest: Digest) -> list[str]:
    """Notes about misleading names. Raises InputError when both experts are the same file."""
    files = [each.files[0] for _, each in experts if len(each.files) == 1]
    if len(files) == 2 and digest(files[0]) == digest(files[1]) != "":
        what = f"is the same file as {files[1]}; the two experts differ, so one of them has a wrong name"
        raise InputError(Problem(what, file=str(files[0])))
    what = "is used as the {}-noise expert (by its sha256 or your choice), whatever its name says"
    return [
        f"{each.files[0]}: {what.format(expert)}"
        for expert, each in experts
        if each.expert not in (None, expert)
    ]


_DISTILLED = re.compile(r"lightx2v|lightning|4[ _-]?steps?", re.IGNORECASE)
_NOT_A14B = re.compile(r"t2v|wan[ _.-]?2[._]?1|5b", re.IGNORECASE)


def _svi_role(lora: LoraRole) -> str:
    return SVI[lora.variant][EXPERTS.index(lora.expert)]


def _lora_roles(candidate: Candidate) -> tuple[str, ...]:
    """The roles that a LoRA's name gives it."""
    svi = named_role(candidate.files[0])
    if svi:
        return (_svi_role(svi),)
    name, expert = candidate.path, candidate.expert
    if expert and _DISTILLED.search(name) and not _NOT_A14B.search(name.rpartition("/")[2]):
        return (f"distill_{expert}",)
    return ()


def _choose_pair(
    roles: tuple[str, str], loras: list[Candidate], used: dict[str, Candidate], digest: Digest | None
) -> None:
    """Add the most precise pair whose files belong together by their names; halves where there is no pair."""
    halves = {role: [each for each in loras if role in _lora_roles(each)] for role in roles}
    if digest and roles != DISTILL and not all(halves.values()):
        for each in loras:  # renamed ones: those that change what SVI's do, if their sha256 is known
            if not _lora_roles(each) and each.what == SVI_LAYERS:
                known = known_role(digest(each.files[0]))
                if known and _svi_role(known) in roles:
                    halves[_svi_role(known)].append(each)

    def common_name(candidate: Candidate) -> str:
        return re.sub(r"high|low", "*", candidate.path, flags=re.IGNORECASE).lower()

    pairs = [
        (max(high.rank, low.rank), place, high, low)
        for place, high in enumerate(halves[roles[0]])
        for low in halves[roles[1]]
        if common_name(high) == common_name(low)
    ]
    best = min(pairs, key=lambda pair: pair[:2], default=None)
    for role, paired in zip(roles, best[2:] if best else (None, None), strict=True):
        others = sorted(halves[role], key=lambda each: each.rank)
        if role not in used and (paired or others):
            used[role] = paired or others[0]
