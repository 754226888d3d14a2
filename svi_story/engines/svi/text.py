"""Prompts to embeddings: cleaned, 512 tokens, UMT5, padding rows zero. Source: Wan's own text pipeline."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from svi_story.engines.svi.device import release
from svi_story.engines.svi.weights.loading import load_text_encoder
from svi_story.engines.svi.weights.tensors import MAX_FILE
from svi_story.errors import InputError, Problem
from svi_story.events import ModelWorking, PromptsStarted
from svi_story.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import torch
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import UMT5EncoderModel

    from svi_story.engines.base import Checkpoint
    from svi_story.engines.svi.weights.catalogue import ModelPaths
    from svi_story.engines.svi.weights.loading import Placement
    from svi_story.events import Reporter

    Keep = Callable[[str], Checkpoint | None]
    """Where a cleaned prompt's embedding is kept beyond this process; None keeps it in memory only."""


TOKENS = 512


def clean(prompt: str) -> str:
    """A prompt as the model was trained to read it: repaired encoding, no HTML entities, single spaces."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text.strip()).strip()


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, cutting and padding to 512 tokens. Raises InputError for a bad file.

    Read as it stands: transformers 5 builds T5 tokenizers anew from their vocabulary, and not all the same.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(read_regular(path, MAX_FILE))
    except Exception as error:
        raise InputError(Problem(f"not a tokenizer ({error}); download it again", file=str(path))) from error
    pad = tokenizer.token_to_id("<pad>")
    if pad is None:
        raise InputError(Problem("has no <pad> token: not UMT5's tokenizer.json", file=str(path)))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=pad, pad_token="<pad>")  # noqa: S106 - a token of text
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, encoder: UMT5EncoderModel, path: Path) -> None:
    """Raises InputError for another model's tokenizer, whose tokens would mean something else."""
    rows, tokens = encoder.shared.weight.shape[0], tokenizer.get_vocab_size()
    if not rows / 2 < tokens <= rows:
        what = f"has {tokens} tokens, and the text encoder {rows}: not its tokenizer; download UMT5's"
        raise InputError(Problem(what, file=str(path)))


def tokenize(tokenizer: Tokenizer, prompt: str) -> tuple[Tensor, Tensor]:
    """ids_BL and mask_BL of one prompt, int64 [1, 512]; the mask is one where a token stands."""
    import torch

    encoding = tokenizer.encode(clean(prompt))
    return torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask])


def encode(encoder: UMT5EncoderModel, tokenizer: Tokenizer, prompt: str, device: torch.device) -> Tensor:
    """embedding_TD of one prompt, [tokens, width] in the encoder's dtype, without the padding's rows."""
    import torch

    ids_BL, mask_BL = (part.to(device) for part in tokenize(tokenizer, prompt))
    with torch.no_grad():
        context_BLD: Tensor = encoder(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
    return context_BLD[0, : int(mask_BL.sum())].clone()


def pad(embedding_TD: Tensor) -> Tensor:
    """context_BLD as the experts take it, [1, 512, width]: rows without a token are zero."""
    tokens, width = embedding_TD.shape
    context_BLD = embedding_TD.new_zeros(1, TOKENS, width)
    context_BLD[0, :tokens] = embedding_TD
    return context_BLD


class Embeddings:
    """The prompts met so far, each without padding, on the CPU."""

    def __init__(
        self, paths: ModelPaths, placement: Placement, keep: Keep, report: Reporter = lambda _: None
    ) -> None:
        self._paths = paths
        self._placement = placement
        self._keep = keep
        self._report = report
        self._known: dict[str, Tensor] = {}

    def missing(self, prompts: Iterable[str]) -> list[str]:
        """The prompts, cleaned, that must be encoded: neither met before nor kept."""
        new = sorted({clean(prompt) for prompt in prompts} - self._known.keys())
        return [prompt for prompt in new if not self._load(prompt)]

    def prepare(self, prompts: Iterable[str], resident: int | None = None) -> int:
        """Find or encode every prompt; how many were encoded. `resident` as in `load_text_encoder`.

        Raises InputError for a bad tokenizer or text encoder.
        """
        missing = self.missing(prompts)
        if missing:
            tokenizer = load_tokenizer(self._paths.tokenizer)
            encoder = load_text_encoder(self._paths.text_encoder, self._placement, resident, self._report)
            check_tokenizer(tokenizer, encoder, self._paths.tokenizer)
            self._report(PromptsStarted(len(missing)))
            for done, prompt in enumerate(missing, 1):
                self._known[prompt] = encode(encoder, tokenizer, prompt, self._placement.device).cpu()
                self._report(ModelWorking("text", done, len(missing)))
            del encoder
            release()
        for prompt in missing:
            kept = self._keep(prompt)
            if kept:
                kept.save({"embedding": self._known[prompt].float().numpy()})
        return len(missing)

    def context(self, prompt: str) -> Tensor:
        """context_BLD of one prompt as the experts take it, [1, 512, width], on the device."""
        self.prepare([prompt])
        return pad(self._known[clean(prompt)]).to(self._placement.device)

    def _load(self, prompt: str) -> bool:
        """Whether an embedding was kept; it is known then. float32 holds bfloat16 exactly."""
        import torch

        kept = self._keep(prompt)
        state = kept.load() if kept else None
        if state is not None:
            self._known[prompt] = torch.tensor(state["embedding"]).to(self._placement.dtype)
        return state is not None
