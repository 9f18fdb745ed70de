"""Which methods are measured at which fractions of the dense bytes, and how each is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.accuracy.study import Setting
from weightpager.blocks import BlockShape
from weightpager.compiler.task_file.sections import RecoverSpec, RecoverStart
from weightpager.page_dtype import block_bytes

_HEADS = 5e-4
"""Learning rate of heads that the dense model has trained already."""


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured; chosen on validation data, before its held-out results were seen.

    Attributes:
        max_length: tokens of a text.
        train_items: texts to learn from, per task; characters in domain B.
        eval_items: at most so many to be measured on, in the same unit.
        dense_learning_rate: of the dense model's further steps; None where it makes none.
        start: where sparse values set out from.
        calibration_items: texts that saliency and the closed form look at, per task.
    """

    base_steps: int
    base_learning_rate: float
    steps: int
    private_steps: int
    batch: int
    learning_rate: float
    dense_learning_rate: float | None
    distillation: float
    max_length: int
    train_items: int
    eval_items: int
    start: RecoverStart
    calibration_items: int = 256

    def finetune(self, seed: int, private_blocks: float = 0.0, low_rank: int = 0) -> RecoverSpec:
        """How sparse values are trained; all steps are made."""
        return RecoverSpec(
            method="finetune",
            start=self.start,
            steps=self.steps,
            private_steps=self.private_steps,
            private_blocks=private_blocks,
            low_rank=low_rank,
            batch=self.batch,
            learning_rate=self.learning_rate,
            head_learning_rate=_HEADS,
            distillation=self.distillation,
            seed=seed,
            patience=0,
        )

    def dense(self, seed: int) -> RecoverSpec | None:
        """How the dense model is trained on for as many steps, by its own learning rate; None if it isn't."""
        if self.dense_learning_rate is None:
            return None
        return self.finetune(seed).model_copy(update={"learning_rate": self.dense_learning_rate, "start": "dense"})


EFFORTS = {
    # A teacher must be well trained before its answers help: half of all steps are the dense model's.
    "A": Effort(
        base_steps=960, base_learning_rate=1e-4, steps=960, private_steps=80, batch=16, learning_rate=2e-4,
        dense_learning_rate=5e-5, distillation=0.5, max_length=64, train_items=8000, eval_items=2000,
        start="dense",
    ),
    # A language model brings its head; 480 steps are about twenty minutes on two cores, a measurement half a minute.
    "B": Effort(
        base_steps=1, base_learning_rate=3e-4, steps=480, private_steps=60, batch=4, learning_rate=3e-4,
        dense_learning_rate=1e-4, distillation=0.0, max_length=256, train_items=1_000_000, eval_items=40_000,
        start="closed-form",
    ),
    # 35 minutes of one core for the dense model. After 120 steps its loss on validation data is 1.91 at this rate and
    # 2.31 at 1e-3.
    "D": Effort(
        base_steps=480, base_learning_rate=3e-4, steps=480, private_steps=40, batch=16, learning_rate=3e-4,
        dense_learning_rate=1e-4, distillation=0.5, max_length=384, train_items=2000, eval_items=200,
        start="closed-form",
    ),
    # The model answers these very questions already and isn't trained on: all blocks in int4, trained for as many
    # steps, show what more training brings. 1,400 held-out questions take four minutes to answer.
    "E": Effort(
        base_steps=1, base_learning_rate=1e-5, steps=280, private_steps=20, batch=8, learning_rate=1e-4,
        dense_learning_rate=None, distillation=0.5, max_length=96, train_items=8000, eval_items=200,
        start="closed-form", calibration_items=64,
    ),
}  # fmt: skip
WRITING = frozenset({"D", "E"})
"""Domains whose tasks answer prompts."""

QUICK = Effort(
    base_steps=480, base_learning_rate=2e-4, steps=160, private_steps=30, batch=16, learning_rate=2e-4,
    dense_learning_rate=1e-4, distillation=0.5, max_length=64, train_items=4000, eval_items=500, start="dense",
)  # fmt: skip
QUICK_WRITING = replace(EFFORTS["D"], base_steps=24, steps=24, private_steps=4, train_items=200, eval_items=20)
"""Shows that it runs."""


def effort_of(domain: str, *, quick: bool) -> Effort:
    if quick:
        return QUICK_WRITING if domain in WRITING else QUICK
    return EFFORTS[domain]


_BLOCK = BlockShape(16, 32)
BYTES = {dtype: block_bytes(_BLOCK, dtype) / block_bytes(_BLOCK, "bfloat16") for dtype in ("int8", "int4")}
"""Of a block with its scales, as a share of the same one in bfloat16."""

TRAINED_THROUGH = {"all_blocks_int2": "int2"}
"""Dense models that are trained through a rounding which no bundle has, and the rounding's name."""

METHODS = (
    "ours", "ours_private", "ours_int8", "ours_int4", "ours_private_int4", "ours_low_rank_int4", "unaligned",
    "shared_mask", "shared_mask_int8", "shared_mask_int4", "all_blocks_int4", "low_rank_int4", "per_task_checkpoint",
    "own_tower_int4",
    *TRAINED_THROUGH,
)  # fmt: skip

ALL_BLOCKS = 0.281
"""All paged weights in int4, with their scales."""

LOW_RANK = 8
WITH_LOW_RANK = 0.304
"""All of SmolLM2's paged weights in int4, 0.281, and one task's low-rank parts in bfloat16."""

HALF = 0.14
HALF_WITH_LOW_RANK = 0.163
"""Half of these weights, and the same low-rank parts."""

FRACTIONS = {
    "A": (0.25, 0.15, 0.5, 0.1, 0.7),
    "B": (0.7, 0.5),
    "D": (HALF, ALL_BLOCKS, WITH_LOW_RANK, HALF_WITH_LOW_RANK, 0.07),
    "E": (HALF, ALL_BLOCKS, 0.07),
}
INT4_FRACTIONS = {"A": (0.07, 0.14, ALL_BLOCKS, 0.035, 0.1, 0.21), "B": (), "D": (), "E": ()}
"""Where four bits are measured, too: a quarter of the blocks, half, all, an eighth, a third, three quarters."""

_EVERY = (0, 1, 2)
SEEDS = {
    "A": {0.25: _EVERY, 0.15: _EVERY, 0.07: _EVERY, 0.14: _EVERY},
    "B": {},
    "D": {HALF: _EVERY},
    "E": {HALF: _EVERY},
}
"""More than the first, where there are."""

ALIGNMENT = 0.5
"""λ, chosen on validation data."""

LOOSE_ALIGNMENT = {0.7: 2.0}
"""λ where most blocks are kept, chosen on validation data."""

LOOSE = 0.6
"""The density above which λ is that."""

FEW = 0.15
"""The density up to which a tenth of a task's blocks is made private; a twentieth above it."""

PRIVATE_OF_WRITING = 0.1
"""Share of a writing task's blocks that is made private, whatever it keeps."""

TRAINING_FREE = 0.5
"""The least fraction at which values are worth having without training."""


def settings(domain: str, fraction: float, effort: Effort, seed: int, *, quick: bool) -> Iterator[Setting]:
    if domain == "E":
        yield from _without_training(fraction, seed)
    if domain in WRITING:
        yield from _writing_settings(fraction, effort, seed)
        return
    if fraction in FRACTIONS[domain] or fraction not in INT4_FRACTIONS[domain]:
        yield from _wide_settings(domain, fraction, effort, seed, quick=quick)
    if fraction in INT4_FRACTIONS[domain]:
        yield from _narrow_settings(fraction, effort, seed, eights=not quick and fraction not in FRACTIONS[domain])


def _narrow_settings(fraction: float, effort: Effort, seed: int, *, eights: bool) -> Iterator[Setting]:
    """Ours and one shared mask in int4, and ours in int8 with the fewer blocks that as many bytes hold of these."""
    if fraction == ALL_BLOCKS:
        yield _all_blocks(effort, seed)
        return
    shared, density = effort.finetune(seed), fraction / BYTES["int4"]
    chosen = LOOSE_ALIGNMENT[0.7] if density > LOOSE else ALIGNMENT
    yield Setting("ours_int4", fraction, density, chosen, shared, "int4")
    yield Setting("shared_mask_int4", fraction, density, float("inf"), shared, "int4")
    yield Setting("ours_private_int4", fraction, density, chosen, _private(effort, seed, density), "int4")
    if eights:
        yield Setting("ours_int8", fraction, fraction / BYTES["int8"], ALIGNMENT, shared, "int8")


def _writing_settings(fraction: float, effort: Effort, seed: int) -> Iterator[Setting]:
    """Of tasks that write: in four bits alone, beside a base in four bits with a low-rank part for each task."""
    low_rank = effort.finetune(seed, low_rank=LOW_RANK)
    if fraction == ALL_BLOCKS:
        yield _all_blocks(effort, seed)
        return
    if fraction == WITH_LOW_RANK:
        yield Setting("low_rank_int4", fraction, 1.0, float("inf"), low_rank, "int4")
        return
    if fraction == HALF_WITH_LOW_RANK:
        yield Setting("ours_low_rank_int4", fraction, HALF / BYTES["int4"], ALIGNMENT, low_rank, "int4")
        return
    shared, density = effort.finetune(seed), fraction / BYTES["int4"]
    private = effort.finetune(seed, PRIVATE_OF_WRITING)
    yield Setting("ours_int4", fraction, density, ALIGNMENT, shared, "int4")
    yield Setting("ours_private_int4", fraction, density, ALIGNMENT, private, "int4")
    yield Setting("shared_mask_int4", fraction, density, float("inf"), shared, "int4")


def _without_training(fraction: float, seed: int) -> Iterator[Setting]:
    """Values by least squares alone, in four bits: they leave a model that sees as it was."""
    found, density = RecoverSpec(method="closed-form"), min(1.0, fraction / BYTES["int4"])
    if fraction == ALL_BLOCKS:
        yield Setting("all_blocks_int4", fraction, 1.0, float("inf"), found, "int4")
        return
    yield Setting("ours_int4", fraction, density, ALIGNMENT, found, "int4")
    yield Setting("shared_mask_int4", fraction, density, float("inf"), found, "int4")
    if fraction == HALF and seed == 0:
        yield Setting("own_tower_int4", fraction, density, ALIGNMENT, found, "int4", vision="own")


def _all_blocks(effort: Effort, seed: int) -> Setting:
    """Dense int4 that is trained through the rounding as long as sparse methods are."""
    return Setting("all_blocks_int4", ALL_BLOCKS, 1.0, float("inf"), effort.finetune(seed), "int4")


def _private(effort: Effort, seed: int, density: float) -> RecoverSpec:
    return effort.finetune(seed, 0.1 if density <= FEW else 0.05)


def _wide_settings(domain: str, fraction: float, effort: Effort, seed: int, *, quick: bool) -> Iterator[Setting]:
    """In bfloat16; and in int8, with about twice the blocks."""
    chosen = LOOSE_ALIGNMENT.get(fraction, ALIGNMENT)
    if fraction >= TRAINING_FREE:
        yield Setting("ours", fraction, fraction, chosen, RecoverSpec(method="closed-form"))
        for method, alignment in (("ours", chosen), ("unaligned", 0.0), ("shared_mask", float("inf"))):
            yield Setting(method, fraction, fraction, alignment, RecoverSpec(method="none"))
        if fraction > TRAINING_FREE and domain == "A":
            return
    shared, private, whole = effort.finetune(seed), _private(effort, seed, fraction), effort.finetune(seed, 1.0)
    yield Setting("ours", fraction, fraction, chosen, shared)
    yield Setting("shared_mask", fraction, fraction, float("inf"), shared)
    if domain == "B":
        return
    yield Setting("ours_private", fraction, fraction, chosen, private)
    if quick:
        return
    yield Setting("unaligned", fraction, fraction, 0.0, shared)
    yield Setting("per_task_checkpoint", fraction, fraction, 0.0, whole)
    density = min(1.0, fraction / BYTES["int8"])
    yield Setting("ours_int8", fraction, density, chosen, shared, "int8")
    yield Setting("shared_mask_int8", fraction, density, float("inf"), shared, "int8")
