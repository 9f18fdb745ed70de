"""Transformers' `generate` in steps: it is stopped, and goes on later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.backends.torch.kv_cache import CACHE, new_cache, reads_in_pieces
from weightpager.backends.torch.limits import activations_of
from weightpager.backends.torch.model.architecture import quiet_transformers


class ResumableGeneration:
    """A batch of texts, and the cache of what the model has read of them.

    Steps may lie far apart, and other texts may be read between. Long prompts are read in pieces, so that memory grows
    with a piece times a text's length, not with its square. What comes out is what one call of transformers' `generate`
    gives, but for rounding where a prompt takes several pieces.

    Attributes:
        ids: int64 [texts, tokens], shorter ones padded on the left.
        stoppable: whether `grow` may be stopped and called again.
    """

    def __init__(self, module: nn.Module, ids: Tensor, mask: Tensor) -> None:
        """Nothing has been read.

        Args:
            module: of a decoder.
            ids: the prompts, as the attribute.
            mask: int64 [texts, tokens], 0 for padding.
        """
        decoder: Any = module
        self.ids = ids
        self._mask = mask
        self._module = decoder
        self._prompt = ids.shape[1]
        self._cache: Any = new_cache(decoder.config)
        self.stoppable = self._cache is not None
        self._in_pieces = reads_in_pieces(decoder.config)
        self._activations = activations_of(decoder.config, decoder.dtype.itemsize)
        self._read = 0

    @property
    def unread(self) -> int:
        """Tokens of each prompt that `read_piece` should read before they grow; the last piece is read as they do."""
        left = self._prompt - self._read
        return max(0, left - self._piece()) if self._in_pieces and left > 0 else 0

    def read_piece(self) -> None:
        """Read one more piece; some of it is `unread`."""
        assert self.unread
        stop = self._read + self._piece()
        # By transformers' own way to read a prompt, which knows what each model needs; the token is thrown away.
        plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": 0}
        ids, mask = self.ids[:, :stop], self._mask[:, :stop]
        with nullcontext() if mask[:, -1].all() else quiet_transformers():  # says padding is to the right
            self._generate(ids, mask, max_new_tokens=1, **plain)
        self._read = stop

    def grow(self, max_new_tokens: int, **options: Any) -> None:
        """Read what is left, and go on by so many tokens at most, as transformers' `generate` does with these options.

        Where they are stopped by a criterion, they can grow on, if they are `stoppable`.
        """
        done = self.ids.shape[1] - self._prompt
        generated = self._generate(
            self.ids, self._mask, max_new_tokens=max_new_tokens, **_further(self._module, done), **options
        )
        fresh = generated.sequences.shape[1] - self.ids.shape[1]
        self.ids = generated.sequences
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), fresh)], 1)
        self._read = self.ids.shape[1] - 1

    def keep(self, texts: Sequence[int]) -> None:
        """Let go of all but these; only if `stoppable`."""
        assert self._cache is not None
        places = torch.tensor(texts, device=self.ids.device)
        self.ids, self._mask = self.ids[places], self._mask[places]
        self._cache.batch_select_indices(places)

    def _piece(self) -> int:
        return self._activations.piece(len(self.ids), self._read, self._prompt)

    def _generate(self, ids: Tensor, mask: Tensor, **options: Any) -> Any:
        kept = {} if self._cache is None else {CACHE: self._cache, "use_cache": True, "cache_implementation": None}
        single = {"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": True}
        generated = self._module.generate(input_ids=ids, attention_mask=mask, **single, **kept, **options)
        if self._cache is not None:
            self._cache = getattr(generated, CACHE)  # another one where the way to embed positions has changed
        return generated


def _further(module: Any, grown: int) -> dict[str, Any]:
    """Generation options that count from the prompt's end, shifted by the tokens already generated."""
    if not grown:
        return {}
    options = module.generation_config
    fewest, decay = options.min_new_tokens, options.exponential_decay_length_penalty
    return {
        "begin_suppress_tokens": None,
        "min_new_tokens": None if fewest is None else max(0, fewest - grown),
        "exponential_decay_length_penalty": None if decay is None else (decay[0] - grown, decay[1]),
    }
