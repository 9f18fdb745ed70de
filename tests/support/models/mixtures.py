"""Tiny mixtures of experts, bundles of them under masks of any kind, and what transformers computes under the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny
from families import MIXTURES
from weightpager.blocks import BlockShape
from weightpager.bundle import TaskEntry
from weightpager.bundle.writer import writing
from weightpager.compiler import task_file
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.paged_weights import sort_weights
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import StoredBlocks, pack
from weightpager.compiler.packing.plan import BundlePlan
from weightpager.compiler.packing.write import write_bundle
from weightpager.compiler.training.masks import Masks
from weightpager.nn.experts import set_upright
from weightpager.page_dtype import block_bytes
from weightpager.store import StorageModel
from weightpager.transitions import Transitions

Bools = npt.NDArray[np.bool_]

TOKENS = torch.tensor([[2, 4, 9, 12, 7, 3], [5, 5, 1, 15, 0, 8]])


def model_of(family: str, **changes: Any) -> PreTrainedModel:
    """A decoder of random weights whose router does choose, as transformers has it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**MIXTURES[family], "initializer_range": 0.2, **changes})
    made: PreTrainedModel = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("mlp.gate.weight"):  # zeros in some families
            nn.init.normal_(parameter)
    return made.requires_grad_(False)


def source_of(
    model: PreTrainedModel, folder: Path, tasks: int = 2, data: Mapping[str, Any] | None = None, **settings: Any
) -> DenseModel:
    """A source of tasks over one model, which is set upright. They are of texts, unless other data is given."""
    model.config.save_pretrained(folder)
    texts = data or tiny.text(folder, "some", tiny.WORDS)
    names = [f"task-{number}" for number in range(tasks)]
    content = {"model": str(folder), "block": "8x8", "tasks": dict.fromkeys(names, texts), **settings}
    file = task_file.from_dict(content)
    set_upright(model)
    models = dict.fromkeys(names, model)
    paged, resident = sort_weights(models, file.block, folder)
    own = tiny.tokenizer()
    rate = Transitions.uniform(names)
    return DenseModel(file, folder, model.config, own, models, paged, resident, own_tokenizer=own, transitions=rate)


def masks_of(source: DenseModel, keep: Mapping[str, Bools]) -> Masks:
    """Masks [blocks, tasks] of the weights that are named; others are kept."""
    tasks = len(source.models)
    every = {info.name: np.ones((info.grid.count, tasks), np.bool_) for info in source.paged}
    return Masks(tuple(source.models), {**every, **keep})


def write(source: DenseModel, masks: Masks, path: Path, page_bytes: int | None = None) -> None:
    """A bundle of the dense values under these masks."""
    file, rate = source.task_file, Transitions.uniform(masks.tasks)
    stored = [StoredBlocks.of(info.layer, masks.keep[info.name]) for info in source.paged]
    size = block_bytes(file.block, file.dtype)
    packing = pack(stored, size, rate.switch_rate(), StorageModel(), page_bytes)
    entries = tuple(
        TaskEntry(name=name, kind="language-modeling", classes=[], max_length=16, sparsity=0.5, dense=None, eval=None)
        for name in masks.tasks
    )
    with writing(path) as writer:
        write_bundle(writer, BundlePlan(file.dtype, TaskWeights(source), masks.keep, packing, entries, rate, None))


def expected(
    family: str, source: DenseModel, masks: Masks, task: str, tokens: Tensor = TOKENS, **changes: Any
) -> Tensor:
    """The logits of transformers' own modules with zeros for what a task drops, whose routers pass over lost experts.

    Nothing of ours takes part but the masks.
    """
    plain = model_of(family, **changes)
    infos = {info.name.removeprefix("base_model."): info for info in source.paged}
    spread = {name: masks.spread(task, info) for name, info in infos.items()}
    for name, module in plain.model.named_modules():
        if name in spread:
            module.weight.mul_(spread[name])
        elif type(module).__name__.endswith("SparseMoeBlock"):
            count = module.experts.down_proj.shape[0]
            parts = [
                [spread[f"{name}.experts.{each}.{part}_proj"] for part in ("gate", "up", "down")]
                for each in range(count)
            ]
            for each, (gate, up, down) in enumerate(parts):
                module.experts.gate_up_proj[each].mul_(torch.cat([gate, up]))
                module.experts.down_proj[each].mul_(down)
            lost = torch.tensor([not all(part.any() for part in of_expert) for of_expert in parts])
            module.gate.register_forward_hook(_passing_over(lost, module.gate))
    with torch.inference_mode():
        found: Tensor = plain(input_ids=tokens).logits
    return found


def _passing_over(lost: Tensor, router: Any) -> Any:
    """A hook that has a router choose again, lost experts at -inf."""

    def hook(_module: nn.Module, _given: Any, found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.where(lost, float("-inf"), found[0].float())
        chances = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
        order = chances.argsort(-1, descending=True)[:, : min(router.top_k, int((~lost).sum()))]
        weights = chances.gather(-1, order)
        if getattr(router, "norm_topk_prob", True):
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, order

    return hook


__all__ = ["TOKENS", "BlockShape", "expected", "masks_of", "model_of", "source_of", "write"]
