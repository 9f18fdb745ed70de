"""What a task's torch module computes for answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from weightpager.answers.work import Sampling
from weightpager.backends.torch.torch_model import TorchModel


class CastsOf(TorchDispatchMode):
    """Counts how often tensors of one shape are cast."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_autocast_casts_a_weight_once_however_many_tokens_are_written() -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(config).eval()
    weight = module.model.layers[0].mlp.up_proj.weight
    ids = np.arange(1, 7)[None]
    with CastsOf(weight.shape) as casts, torch.autocast("cpu", torch.bfloat16):
        texts = TorchModel(module).grow(ids, np.ones_like(ids), Sampling(), 0)
        texts.grow(5, lambda tokens: np.zeros(len(tokens), bool))
    same = sum(weight.shape == of.shape for of in module.parameters())
    assert casts.count == same
