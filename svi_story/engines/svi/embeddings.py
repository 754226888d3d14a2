"""Text first: every prompt is encoded once, and the encoder is gone before the experts come."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING

from svi_story.engines.svi import text
from svi_story.engines.svi.loading import load_text_encoder
from svi_story.engines.svi.streaming import stream_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from svi_story.engines.base import Checkpoint
    from svi_story.engines.svi.layout import Layout
    from svi_story.engines.svi.loading import Place
    from svi_story.engines.svi.memory import Rung

    Keep = Callable[[str], Checkpoint | None]
    """Where a cleaned prompt's embedding is kept beyond this process; None keeps it in memory only."""


class Embeddings:
    """The prompts met so far, each without padding, on the CPU."""

    def __init__(self, layout: Layout, place: Place, keep: Keep) -> None:
        self._layout = layout
        self._place = place
        self._keep = keep
        self._known: dict[str, Tensor] = {}
        self.rung: Rung = "resident"
        """Where the encoder is, while there is one."""

    def prepare(self, prompts: Iterable[str]) -> int:
        """Find or encode every prompt; how many were encoded.

        Raises InputError for a bad tokenizer or text encoder.
        """
        new = sorted({text.clean(prompt) for prompt in prompts} - self._known.keys())
        missing = [prompt for prompt in new if not self._load(prompt)]
        if missing:
            self._encode(missing)
            release()
        for prompt in missing:
            kept = self._keep(prompt)
            if kept:
                kept.save({"embedding": self._known[prompt].float().numpy()})
        return len(missing)

    def context(self, prompt: str) -> Tensor:
        """context_BLD of one prompt as the experts take it, [1, 512, width], on the device."""
        cleaned = text.clean(prompt)
        if cleaned not in self._known:
            self.prepare([prompt])
        return text.pad(self._known[cleaned]).to(self._place.device)

    def _load(self, prompt: str) -> bool:
        """Whether an embedding was kept; it is known then. float32 holds bfloat16 exactly."""
        import torch

        kept = self._keep(prompt)
        state = kept.load() if kept else None
        if state is not None:
            self._known[prompt] = torch.tensor(state["embedding"]).to(self._place.dtype)
        return state is not None

    def _encode(self, prompts: Sequence[str]) -> None:
        import torch

        tokenizer = text.load_tokenizer(self._layout.tokenizer)
        place, device = self._place, self._place.device
        if self.rung == "stream":
            encoder = load_text_encoder(self._layout.text_encoder, replace(place, device=torch.device("cpu")))
            stream_leaves(encoder, device)
        else:
            encoder = load_text_encoder(self._layout.text_encoder, place)
        for prompt in prompts:
            self._known[prompt] = text.encode(encoder, tokenizer, prompt, device).cpu()


def release() -> None:
    """Give freed memory back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
