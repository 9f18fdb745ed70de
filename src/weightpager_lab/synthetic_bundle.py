"""Bundles of random weights, for speed and memory only: real models' shapes, written as the compiler writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from weightpager.backends.torch.architecture import module_of_kind
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.files.new_directory import scratch
from weightpager.bundle.writer import writing
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import dropped_halves
from weightpager.compiler.model.paged_weights import sort_weights
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import StoredBlocks, pack
from weightpager.compiler.packing.plan import BundlePlan
from weightpager.compiler.packing.write import write_bundle
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training.masks import Keep
from weightpager.errors import CompileError, ConfigError
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.store import StorageModel
from weightpager.transitions import Transitions
from weightpager_lab.companions import COMPANIONS, Name


@dataclass(frozen=True)
class Recipe:
    """What a synthetic bundle is like.

    Attributes:
        name: of the model.
        config: its shape.
        block: that its weights are cut into.
        tasks: how many.
        density: share of the blocks that each keeps.
        common: share of a task's blocks that all tasks keep; the rest is drawn for each.
        page_bytes: bytes of a page; None lets the packer choose.
        groups: a layer's blocks are kept or dropped in so many groups, few enough for pages of one kind, as the aligner
            leaves them where there are many tasks; None draws every block by itself.
        dtype: of the pages.
    """

    name: str
    config: Qwen2Config
    block: BlockShape
    tasks: int
    density: float
    common: float
    page_bytes: int | None = None
    groups: int | None = None
    dtype: PageDtype = "bfloat16"

    def stored_in(self, dtype: PageDtype) -> Recipe:
        """The same with pages of another dtype."""
        return self if dtype == self.dtype else replace(self, name=f"{self.name} {dtype}", dtype=dtype)

    def companion(self, name: Name) -> Recipe:
        """A companion of the same: unaligned tasks overlap by the density."""
        density = 1.0 if name == "all_blocks" else self.density
        words = name.replace("_", " ")
        common = 0.0 if name == "unaligned" else 1.0
        return replace(self, name=f"{self.name} {words}", density=density, common=common)


def half_billion(tasks: int = 6) -> Recipe:
    """Qwen2.5-0.5B, half of the blocks dropped."""
    return Recipe("Qwen2.5-0.5B", half_billion_config(), BlockShape(16, 32), tasks, density=0.5, common=0.4)


def quarter_kept(*, tasks: int = 6) -> Recipe:
    """Qwen2.5-0.5B, three quarters of the blocks dropped; tasks overlap by 0.61, as if they were aligned."""
    return Recipe("Qwen2.5-0.5B at 75 %", half_billion_config(), BlockShape(16, 32), tasks, density=0.25, common=0.55)


def billion(*, tasks: int = 6) -> Recipe:
    """Llama-3.2-1B, three quarters of the blocks dropped; tasks overlap as those of `quarter_kept`."""
    config = _config(hidden_size=2048, intermediate_size=8192, layers=16, heads=32, words=128256, key_value_heads=8)
    return Recipe("Llama-3.2-1B at 75 %", config, BlockShape(16, 32), tasks, density=0.25, common=0.55)


def small(tasks: int = 6) -> Recipe:
    """A decoder of some 25 million paged weights: a batch of it takes milliseconds on a laptop."""
    config = _config(hidden_size=512, intermediate_size=1536, layers=8, heads=8, words=2000)
    return Recipe("small", config, BlockShape(16, 32), tasks, density=0.4, common=0.4)


def long_context(tasks: int = 6) -> Recipe:
    """A decoder of four narrow layers that reads 131,072 tokens: what a long prompt costs, and little else."""
    config = _config(hidden_size=128, intermediate_size=384, layers=4, heads=4, words=2000, positions=2**17)
    return Recipe("long context", config, BlockShape(16, 32), tasks, density=0.4, common=0.4)


def assistant_of_many() -> Recipe:
    """Qwen2.5-0.5B, three quarters of the blocks dropped, with 18 tasks that overlap by 0.61."""
    return replace(quarter_kept(tasks=18), groups=36, page_bytes=1 << 17)


def few_layers(block: BlockShape, page_bytes: int, tasks: int) -> Recipe:
    """Four layers of Qwen2.5-0.5B, three quarters of the blocks dropped."""
    config = _config(hidden_size=896, intermediate_size=4864, layers=4, heads=14, words=1000)
    name = f"four layers of Qwen2.5-0.5B {block} {page_bytes >> 10}KiB"
    return Recipe(name, config, block, tasks, density=0.25, common=0.55, page_bytes=page_bytes)


def many_tasks(tasks: int) -> Recipe:
    """Four layers of Qwen2.5-0.5B for that many tasks, three quarters of the blocks dropped."""
    config = _config(hidden_size=896, intermediate_size=4864, layers=4, heads=14, words=1000)
    recipe = Recipe("many tasks", config, BlockShape(16, 32), tasks, density=0.25, common=0.55)
    return replace(recipe, groups=64, page_bytes=1 << 16)


def half_billion_config() -> Qwen2Config:
    """The shape of Qwen2.5-0.5B, in bfloat16."""
    return _config(hidden_size=896, intermediate_size=4864, layers=24, heads=14, words=151936)


def many_pages() -> Recipe:
    """More than 100,000 pages and as many tasks as a bundle may have."""
    config = _config(hidden_size=1024, intermediate_size=8192, layers=8, heads=16, words=1000)
    return Recipe("100,000 pages", config, BlockShape(32, 64), 64, density=0.5, common=0.4, page_bytes=4096)


def _config(
    *,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    words: int,
    key_value_heads: int = 2,
    positions: int = 2**15,
) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=words,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )


def bundle_of(recipe: Recipe, folder: Path, report: Callable[[str], None]) -> Bundle:
    """The bundle in a folder; written there first if it isn't yet."""
    plain = recipe.name.replace(" ", "-").replace(",", "").replace("%", "percent")
    path = folder / f"{plain}-{recipe.tasks}.bundle"
    if not path.is_dir():
        report(f"write {path.name} …")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            write(recipe, path)
        except (ConfigError, CompileError):
            if not path.is_dir():  # else another process has written it meanwhile
                raise
    return Bundle.open(path)


def companions_of(
    recipe: Recipe, folder: Path, report: Callable[[str], None], dtype: PageDtype = "bfloat16"
) -> dict[Name, Bundle]:
    """All companions of a bundle whose pages have this dtype, in a folder; written there first if they aren't yet."""
    return {name: bundle_of(recipe.companion(name).stored_in(dtype), folder, report) for name in COMPANIONS}


def write(recipe: Recipe, path: Path) -> None:
    names = [f"task-{number:02d}" for number in range(recipe.tasks)]
    with scratch(path.parent, f".{path.name}.scratch-") as folder:
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(recipe.config).eval().requires_grad_(False)
        source = source_of(model, names, folder, recipe.block)
        write_source(source, _masks(recipe, source), path, 1 - recipe.density, recipe.dtype, recipe.page_bytes)


def source_of(model: Any, names: list[str], folder: Path, block: BlockShape, **settings: object) -> DenseModel:
    """One model as the dense one of some tasks that write, whose texts are a word each.

    Args:
        model: transformers' own.
        names: of the tasks.
        folder: for its configuration and the texts.
        block: that its weights are cut into.
        settings: of the task file beside these.
    """
    files = {split: str(folder / f"{split}.txt") for split in ("train", "eval")}
    for split, file in files.items():
        Path(file).write_text(split, encoding="utf-8")
    model.config.save_pretrained(folder)
    tasks = {name: {"kind": "language-modeling", **files} for name in names}
    task_file = from_dict({"model": str(folder), "block": str(block), "tasks": tasks, **settings})
    models_of = dict.fromkeys(names, model)
    paged, resident = sort_weights(models_of, block, folder)
    tokenizer = word_tokenizer()
    return DenseModel(
        task_file, folder, model.config, tokenizer, models_of, paged, resident,
        own_tokenizer=tokenizer, transitions=Transitions.uniform(names),
    )  # fmt: skip


def model_of_few_numbers(config: PretrainedConfig, numbers: int) -> Any:
    """A language model all of whose matrices are pieces of the same random numbers: its own may be too many.

    Args:
        config: its shape.
        numbers: how many there are, more than the largest matrix has.
    """
    model = module_of_kind(config, "language-modeling", ())
    draw = torch.Generator().manual_seed(0)
    pool = torch.randn(numbers, generator=draw).mul_(0.02)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                first = int(torch.randint(numbers - parameter.numel(), (), generator=draw))
                values = pool[first : first + parameter.numel()].view(parameter.shape)
                own = torch.ones(parameter.shape) if parameter.ndim == 1 else values
                module._parameters[name] = torch.nn.Parameter(own, requires_grad=False)
    return model


def write_source(
    source: DenseModel, keep: Keep, path: Path, sparsity: float, dtype: PageDtype, page_bytes: int | None = None
) -> None:
    """Write the bundle of a dense model's blocks, as they are; any task may follow any other.

    Args:
        source: whose tasks these are.
        keep: which blocks each task keeps.
        path: of the bundle.
        sparsity: that is stated.
        dtype: of the pages.
        page_bytes: their size; None for one that suits the overlaps.
    """
    names = list(source.models)
    transitions = Transitions.uniform(names)
    stored = [StoredBlocks.of(info.layer, keep[info.name]) for info in source.paged]
    size = block_bytes(source.task_file.block, dtype)
    packing = pack(stored, size, transitions.switch_rate(), StorageModel(), page_bytes)
    entries = tuple(
        TaskEntry(
            name=name, kind="language-modeling", classes=[], max_length=512, sparsity=sparsity, dense=None, eval=None,
            dropped=[module for half in dropped_halves(source, keep, number) for module in half.modules],
        )
        for number, name in enumerate(names)
    )  # fmt: skip
    with writing(path) as writer:
        write_bundle(writer, BundlePlan(dtype, TaskWeights(source), keep, packing, entries, transitions, None))


def _masks(recipe: Recipe, source: DenseModel) -> Keep:
    random = np.random.default_rng(0)
    keep, kept_groups = {}, {}

    def of(count: int) -> npt.NDArray[np.bool_]:
        kept, common = round(recipe.density * count), round(recipe.density * recipe.common * count)
        return drawn(count, kept, common, recipe.tasks, random)

    for info in source.paged:
        count = info.grid.count
        if recipe.groups is None:
            keep[info.name] = of(count)
            continue
        if info.layer not in kept_groups:
            kept_groups[info.layer] = of(recipe.groups)
        keep[info.name] = kept_groups[info.layer][random.permutation(count) % recipe.groups]
    return keep


def drawn(count: int, kept: int, common: int, tasks: int, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which of so many blocks, or groups of them, each task keeps [count, tasks]: so many, some in common with all."""
    order = random.permutation(count)
    mask = np.zeros((count, tasks), bool)
    mask[order[:common]] = True
    for task in range(tasks):
        mask[random.choice(order[common:], kept - common, replace=False), task] = True
    return mask


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one word, for bundles that nobody reads words of."""
    inner = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "word": 2}, unk_token="[UNK]"))  # noqa: S106 - a word
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")  # noqa: S106 - words
