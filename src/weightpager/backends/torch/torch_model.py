"""`TorchModel`: what answers need of a task's torch module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from weightpager.answers.model import Activations, CacheSize, Floats, Inputs, Integers, See
from weightpager.answers.work import Sampling
from weightpager.backends.torch.architecture import context_length, uniform_length
from weightpager.backends.torch.generation import (
    CACHE,
    ResumableGeneration,
    activations_of,
    bytes_per_token,
    new_cache,
    reads_in_pieces,
    without_cache,
)
from weightpager.backends.torch.parameters import activation_dtype


class TorchModel:
    """Implements `weightpager.answers.model.TaskModel`.

    Nothing runs in torch's inference mode: in that, a compile that measures under autocast would cast every weight at
    every token.
    """

    def __init__(self, module: nn.Module) -> None:
        """``module`` is the task's, in evaluation mode."""
        self._module: Any = module
        self._once = without_cache(module)

    @property
    def vocab_size(self) -> int:
        return int(self._module.get_input_embeddings().num_embeddings)

    @property
    def context(self) -> int:
        return context_length(self._module)

    @property
    def uniform_length(self) -> int | None:
        return uniform_length(self._module.config)

    @property
    def in_pieces(self) -> bool:
        return reads_in_pieces(self._module.config)

    @cached_property
    def activations(self) -> Activations:
        return activations_of(self._module.config, self._itemsize)

    @property
    def cache(self) -> CacheSize:
        return CacheSize(bytes_per_token(self._module.config, self._itemsize))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        named = getattr(getattr(self._module, "generation_config", None), "eos_token_id", None)
        return frozenset(number for number in (named if isinstance(named, list) else [named]) if number is not None)

    @torch.no_grad()
    def logits(self, inputs: Inputs) -> Floats:
        return _floats(self._module(**self._placed(inputs), **self._once).logits)

    @torch.no_grad()
    def hidden(self, inputs: Inputs) -> Floats:
        base = self._module.base_model
        return _floats(base(**self._placed(inputs), **without_cache(base)).last_hidden_state)

    def grow(
        self,
        ids: Integers,
        mask: Integers,
        sampling: Sampling,
        pad: int,
        most: int | None = None,  # noqa: ARG002 - a cache of transformers has no bound
    ) -> TorchTexts:
        return TorchTexts(self._module, self._tensor(ids), self._tensor(mask), sampling, pad)

    def pieces(self, ids: Integers) -> TorchPieces:
        return TorchPieces(self._module.base_model, self._tensor(ids)[None])

    @property
    def _itemsize(self) -> int:
        return activation_dtype(self._module.parameters()).itemsize

    def _placed(self, inputs: Inputs) -> dict[str, Tensor]:
        return {name: self._tensor(array) for name, array in inputs.items()}

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self._module.device)


class TorchTexts:
    """Texts that transformers' `generate` goes on with. Implements `weightpager.answers.model.GrowingTexts`."""

    def __init__(self, module: nn.Module, ids: Tensor, mask: Tensor, sampling: Sampling, pad: int) -> None:
        self._texts = ResumableGeneration(module, ids, mask)
        self._draws = _Draws(sampling, ids.device)
        self._pad = pad

    @property
    def stoppable(self) -> bool:
        return self._texts.stoppable

    @property
    def unread(self) -> int:
        return self._texts.unread

    @torch.no_grad()
    def read_piece(self) -> None:
        self._texts.read_piece()

    @torch.no_grad()
    def grow(self, most: int, see: See) -> None:
        watch = StoppingCriteriaList([_Watch(see, self._texts.ids.shape[1])])
        with self._draws.options() as options:
            self._texts.grow(most, pad_token_id=self._pad, stopping_criteria=watch, **options)

    @torch.no_grad()
    def keep(self, texts: Sequence[int]) -> None:
        self._texts.keep(texts)


class TorchPieces:
    """A text whose states are read in pieces. Implements `weightpager.answers.model.TextPieces`."""

    def __init__(self, base: Any, ids: Tensor) -> None:
        """``base`` is the module below the head, ``ids`` int64 [1, tokens]."""
        self._base = base
        self._ids = ids
        self._cache = new_cache(base.config)
        self._activations = activations_of(base.config, base.dtype.itemsize)
        self._read = 0

    @property
    def over(self) -> bool:
        return self._read == self._ids.shape[1]

    @torch.no_grad()
    def read_piece(self) -> Floats:
        stop = self._read + self._activations.piece(1, self._read, self._ids.shape[1])
        output = self._base(
            input_ids=self._ids[:, self._read : stop],
            attention_mask=torch.ones_like(self._ids[:, :stop]),
            use_cache=True,
            **{CACHE: self._cache},
        )
        self._read = stop
        return _floats(output.last_hidden_state[0])


def _floats(tensor: Tensor) -> Floats:
    found: Floats = tensor.float().cpu().numpy()
    return found


class _Draws:
    """How a batch's tokens are drawn. A seed is this batch's alone, however many others draw between its steps."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._devices = [device] if device.type == "cuda" else []
        self._state: tuple[Tensor, list[Tensor]] | None = None

    @contextmanager
    def options(self) -> Iterator[dict[str, Any]]:
        """Options of `generate`, for one step.

        A penalty for repeating, which a model may name, isn't taken: it would count the padding of shorter prompts too.
        """
        sampling = self._sampling
        plain = {"repetition_penalty": 1.0, "min_p": None}
        if sampling.temperature == 0:
            yield plain | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            return
        with torch.random.fork_rng(devices=self._devices, enabled=sampling.seed is not None):
            if sampling.seed is not None:
                self._go_on(sampling.seed)
            yield plain | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.seed is not None:
                self._state = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    def _go_on(self, seed: int) -> None:
        if self._state is None:
            torch.manual_seed(seed)
            return
        torch.set_rng_state(self._state[0])
        for device, state in zip(self._devices, self._state[1], strict=True):
            torch.cuda.set_rng_state(state, device)


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Shows every token of every text as soon as it is there."""

    def __init__(self, see: See, length: int) -> None:
        self._see = see
        self._seen = length

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:  # noqa: ARG002 - transformers'
        """Bool [texts]: which are over."""
        over = np.zeros(len(input_ids), bool)
        for tokens in input_ids[:, self._seen :].T.cpu().numpy():
            over = self._see(tokens)
        self._seen = input_ids.shape[1]
        return torch.from_numpy(over).to(input_ids.device)
