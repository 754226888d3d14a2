"""The models in a folder: which files belong together, and what their headers show them to be."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from svi_story.engines.svi.weights.folders import visible_files
from svi_story.engines.svi.weights.formats import RANKS, SUFFIXES, describe, read_shards
from svi_story.engines.svi.weights.gguf_files import is_gguf, read_gguf
from svi_story.engines.svi.weights.tensors import MAX_FILE, read_safetensors
from svi_story.errors import InputError, Problem
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    Kind = Literal["expert", "vae", "text_encoder", "tokenizer", "lora", "prepared", "other"]
    Shapes = Mapping[str, tuple[int, ...]]

Expert = Literal["high", "low"]
EXPERTS: tuple[Expert, Expert] = ("high", "low")
INDEX = ".safetensors.index.json"
TOKENIZER = "tokenizer.json"
MASK_CHANNELS = 4
NEEDED = ("expert", "vae", "text_encoder")
PREPARED = "svi-story-prepared"
"""In the header of a file that `models prepare` wrote: the expert that it is."""
PREPARED_SUFFIX = ".int8.safetensors"
"""Of such a file's name."""


@dataclass(frozen=True)
class Candidate:
    """A model, a tokenizer or a LoRA on the disk."""

    files: tuple[Path, ...]
    """One file, or all its shards."""
    config: Path | None
    """The config.json beside them, where there is one."""
    kind: Kind
    what: str
    """In words."""
    format: str
    precision: str
    """The type that most of its numbers are stored in."""
    problems: tuple[Problem, ...]
    """Why it cannot be used; empty when it can, as far as headers show."""
    path: str
    """Below the folder that was searched, with / between its parts."""

    @property
    def rank(self) -> int:
        """Its place among the types of numbers, the most precise first."""
        return RANKS.get(self.precision, len(RANKS))

    @property
    def expert(self) -> Expert | None:
        """The expert that its name says it is or belongs to."""
        return expert_named(self.path)

    @property
    def bytes(self) -> int:
        """The size of the files that are there."""
        return sum(file.stat().st_size for file in self.files if file.is_file())


_EXPERT_WORDS = re.compile(
    r"(?<![a-z])(high|low)(?=noise|[^a-z]|$)|(?-i:(High|Low)(?=Noise|[^a-z]|$))", re.IGNORECASE
)


def expert_named(path: str) -> Expert | None:
    """The expert that a path names, in its last part that names one; diffusers numbers the transformers."""
    for part in reversed(path.split("/")):
        if part in ("transformer", "transformer_2"):
            return "high" if part == "transformer" else "low"
        words = {(one or other).lower() for one, other in _EXPERT_WORDS.findall(part)}
        if words:
            return next((expert for expert in EXPERTS if words == {expert}), None)
    return None


def find_candidates(root: Path) -> Iterator[Candidate]:
    """Everything below a folder that weights may be in, in the order of their paths."""
    folders: dict[Path, list[Path]] = {}
    for file in visible_files(root):
        if file.suffix in SUFFIXES or file.name == TOKENIZER or file.name.endswith(INDEX):
            folders.setdefault(file.parent, []).append(file)
    for folder, files in folders.items():
        config = folder / "config.json"
        for group, problems in _groups(folder, files):
            path = group[0].relative_to(root).as_posix() if group[0] != root else group[0].name
            states = tuple(_state(file) for file in group)
            yield _inspect(group, config if config.is_file() else None, path, problems, states)


def _state(file: Path) -> tuple[int, int]:
    try:
        stat = file.stat()
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def _groups(folder: Path, files: list[Path]) -> Iterator[tuple[tuple[Path, ...], tuple[Problem, ...]]]:
    """The files of a folder that belong together: an index's, numbered shards, single ones."""
    weights = [file for file in files if file.suffix in SUFFIXES]
    indexed: set[Path] = set()
    for index in (file for file in files if file.name.endswith(INDEX)):
        try:
            names = _shards_of_index(index)
        except InputError as error:
            yield (index,), error.problems
            indexed.update(file for file in weights if file.name.startswith(index.name.removesuffix(INDEX)))
            continue
        shards = tuple(folder / name for name in names)
        indexed.update(shards)
        yield shards, _missing(shards)
    groups: dict[str, list[Path]] = {}
    for file in weights:
        if file not in indexed:
            groups.setdefault(re.sub(r"-\d{5}(-of-\d{5}\.\w+)$", r"-*\1", file.name), []).append(file)
    for found in groups.values():
        shards = tuple(folder / name for name in _shard_names(found[0].name))
        yield shards, _missing(shards)
    yield from (((file,), ()) for file in files if file.name == TOKENIZER)


def _missing(shards: tuple[Path, ...]) -> tuple[Problem, ...]:
    what = "not found: a part of a model; download it again"
    return tuple(Problem(what, file=str(shard)) for shard in shards if not shard.is_file())


def _shards_of_index(index: Path) -> list[str]:
    """The shards that an index names, and those that their numbers ask for.

    Raises InputError when it is no index, or names files elsewhere.
    """
    try:
        names = sorted(set(json.loads(read_regular(index, MAX_FILE))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(Problem("not an index of shards; download it again", file=str(index))) from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise InputError(Problem(f"names {name!r}, which is no shard beside it", file=str(index)))
    return sorted({each for name in names for each in (name, *_shard_names(name))})


def _shard_names(name: str) -> list[str]:
    """All the names of a sharded file's shards, from one of them: `x-00002-of-00006.safetensors`."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)", name)
    count = int(match[3]) if match else 0
    if not match or not 0 < count < 1000:
        return [name]
    return [f"{match[1]}-{number:05}-of-{match[3]}{match[4]}" for number in range(1, count + 1)]


@lru_cache(maxsize=4096)
def _inspect(
    files: tuple[Path, ...],
    config: Path | None,
    path: str,
    problems: tuple[Problem, ...],
    _states: tuple[tuple[int, int], ...],
) -> Candidate:
    """What files are, from their headers; remembered until they change."""
    if files[0].name == TOKENIZER:
        kind: Kind = "tokenizer" if _is_umt5_place(path) else "other"
        return Candidate(files, None, kind, "tokenizer", "", "", problems, path)
    kind = _kind_named(path)
    what, form, precision = "unreadable", "", ""
    if not problems:
        try:
            shapes: dict[str, tuple[int, ...]] = {}
            dtypes: dict[str, int] = {}
            for file in files:
                tensors, metadata = read_gguf(file) if is_gguf(file) else read_safetensors(file)
                if PREPARED in metadata:
                    what = f"prepared {metadata[PREPARED]}-noise expert"
                    return Candidate(files, None, "prepared", what, "int8", "I8", problems, path)
                for key, tensor in tensors.items():
                    shapes[key] = tensor.shape
                    dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + math.prod(tensor.shape)
            if not shapes:
                raise InputError(Problem("holds no tensors; download it again", file=str(files[0])))
            kind, what, reason = classify(shapes)
            precision = max(dtypes, key=lambda name: (dtypes[name], name)) if dtypes else ""
            if reason:
                problems = (Problem(f"{what}: {reason}", file=str(files[0])),)
            elif kind in NEEDED:
                form, precision = describe(read_shards(files).values())
        except InputError as error:
            problems = error.problems
    return Candidate(files, config, kind, what, form, precision, problems, path)


def _is_umt5_place(path: str) -> bool:
    """Whether a tokenizer.json may be UMT5's, as other models have some too. Its size is checked later."""
    folder = path.lower().rpartition("/")[0]
    return "umt5" in folder or folder.rpartition("/")[2] in ("", "tokenizer", "text_encoders", "clip")


def _kind_named(path: str) -> Kind:
    """What a file that cannot be read is by its name."""
    name = path.lower()
    if name.endswith(PREPARED_SUFFIX):
        return "prepared"
    if "lora" in name:
        return "lora"
    if "umt5" in name or "text_encoder" in name:
        return "text_encoder"
    if "vae" in name:
        return "vae"
    return "expert" if expert_named(path) else "other"


SVI_LAYERS = "LoRA on all layers that SVI changes"
_LORA_KEY = re.compile(r"\.(lora_\w+|lokr_\w+|hada_\w+|diff|diff_b|dora_scale)(\.|$)")


def _changes_what_svi_does(shapes: Shapes) -> bool:
    """Whether a LoRA changes ten layers in each of its blocks, and nothing else."""
    counts: dict[str, int] = {}
    for layer in dict.fromkeys(key.partition(".lora_")[0] for key in shapes if ".lora_" in key):
        match = re.search(r"blocks[._](\d+)[._]", layer)
        number = match[1] if match else "none"
        counts[number] = counts.get(number, 0) + 1
    return "none" not in counts and {*counts.values()} == {10}


def classify(shapes: Shapes) -> tuple[Kind, str, str]:
    """What tensors are: the kind, in words, and why they cannot be used here (empty when they can)."""
    shapes = {re.sub(r"^(model\.)?diffusion_model\.", "", key): shape for key, shape in shapes.items()}
    if any(_LORA_KEY.search(key) for key in shapes):
        return "lora", SVI_LAYERS if _changes_what_svi_does(shapes) else "LoRA", ""
    if any(".self_attn." in key or ".attn1." in key for key in shapes) and "patch_embedding.weight" in shapes:
        return "expert", *_classify_expert(shapes)
    if "decoder.upsamples.0.upsamples.0.residual.2.weight" in shapes:
        return "vae", "Wan 2.2's own VAE", "it is for the 5B model; the A14B experts need Wan 2.1's VAE"
    first = shapes.get("encoder.conv1.weight") or shapes.get("encoder.conv_in.weight") or ()
    if len(first) == 5:
        wan = {"decoder.middle.0.residual.0.gamma", "decoder.mid_block.resnets.0.norm1.gamma"} & shapes.keys()
        return ("vae", "Wan 2.1's VAE", "") if wan else ("vae", "VAE", "the experts need Wan 2.1's VAE")
    return _classify_text_encoder(shapes)


def _classify_text_encoder(shapes: Shapes) -> tuple[Kind, str, str]:
    with_bias, blocks = set(), set()
    for key in shapes:
        if match := re.match(r"(?:encoder\.block|blocks|enc\.blk)\.(\d+)\.", key):
            blocks.add(match[1])
            if re.search(r"relative_attention_bias|pos_embedding|attn_rel_b", key):
                with_bias.add(match[1])
    if with_bias:
        if with_bias == blocks:
            return "text_encoder", "UMT5 text encoder", ""
        return "text_encoder", "T5 text encoder", "Wan needs UMT5, which has a position bias in each block"
    if any(key.startswith(("text_model.", "visual.transformer.", "vision_model.")) for key in shapes):
        return "text_encoder", "CLIP encoder", "Wan 2.2 needs UMT5"
    return "other", "another model", ""


def _classify_expert(shapes: Shapes) -> tuple[str, str]:
    """An expert in words, and why it cannot be used here."""
    patch = shapes["patch_embedding.weight"]
    head = shapes.get("head.head.weight") or shapes.get("proj_out.weight") or (0,)
    channels, out = (patch[1], head[0] // max(1, math.prod(patch[2:]))) if len(patch) == 5 else (0, 0)
    wanted = 2 * out + MASK_CHANNELS
    needed = "use the Wan 2.2 I2V A14B experts"
    if any(key.startswith(("img_emb.", "condition_embedder.image_embedder.")) for key in shapes):
        return "Wan 2.1 I2V model", f"it has image embeddings (img_emb); {needed}"
    for word, model in (("vace", "VACE"), ("face_adapter", "Animate"), ("control_adapter", "Fun Control")):
        if any(key.startswith(word) for key in shapes):
            return f"Wan {model} model", f"it is made for something else; {needed}"
    if channels and channels == out:
        name = "Wan 2.2 TI2V 5B model" if channels == 48 else "Wan T2V expert"
    else:
        name = "Wan 2.2 I2V expert" if channels == wanted else "Wan model"
    if channels != wanted:
        return name, (
            f"takes {channels} channels, an image-to-video expert {wanted}; "
            f"{needed} (T2V, TI2V and Animate are other models)"
        )
    return name, ""
