"""Prompts to embeddings: cleaned, 512 tokens, UMT5, padding rows zero. Source: Wan's own text pipeline."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from svi_story.engines.svi.digests import LARGEST
from svi_story.errors import InputError, Problem
from svi_story.files import read_regular

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import UMT5EncoderModel

TOKENS = 512


def clean(prompt: str) -> str:
    """A prompt as the model was trained to read it: mended, unescaped, white space runs as one space."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text.strip()).strip()


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, cutting and padding to 512 tokens. Raises InputError for a bad file.

    Read as it stands: transformers 5 builds T5 tokenizers anew from their vocabulary, and not all the same.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(read_regular(path, LARGEST))
    except Exception as error:
        raise InputError(Problem(f"not a tokenizer ({error}); download it again", file=str(path))) from error
    pad = tokenizer.token_to_id("<pad>")
    if pad is None:
        raise InputError(Problem("has no <pad> token: not UMT5's tokenizer.json", file=str(path)))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=pad, pad_token="<pad>")  # noqa: S106 - a token of text
    return tokenizer


def tokenize(tokenizer: Tokenizer, prompt: str) -> tuple[Tensor, Tensor]:
    """ids_BL and mask_BL of one prompt, int64 [1, 512]; the mask is one where a token stands."""
    import torch

    encoding = tokenizer.encode(clean(prompt))
    return torch.tensor([encoding.ids]), torch.tensor([encoding.attention_mask])


def encode(encoder: UMT5EncoderModel, tokenizer: Tokenizer, prompt: str, device: torch.device) -> Tensor:
    """embedding_TD of one prompt, [tokens, width] in the encoder's dtype, without the padding's rows.

    `device` is where the encoder computes, which need not be where its weights wait.
    """
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
