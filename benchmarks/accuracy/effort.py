"""How much is trained and measured in each domain, for every method alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

from weightpager.compiler.task_file.sections import RecoverSpec, RecoverStart

_HEADS = 5e-4
"""Learning rate of heads that the dense model has trained already."""


@dataclass(frozen=True)
class Effort:
    """How much is trained and measured; chosen on validation data, before its held-out results were seen.

    Attributes:
        max_length: tokens of a text.
        train_items: texts to learn from, per task; characters in domain B.
        eval_items: at most so many to be measured on, in the same unit.
        start: where sparse values set out from.
    """

    base_steps: int
    base_learning_rate: float
    steps: int
    private_steps: int
    batch: int
    learning_rate: float
    dense_learning_rate: float
    distillation: float
    max_length: int
    train_items: int
    eval_items: int
    start: RecoverStart

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

    def dense(self, seed: int) -> RecoverSpec:
        """How the dense model is trained on for as many steps, by its own learning rate."""
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
}  # fmt: skip
QUICK = Effort(
    base_steps=480, base_learning_rate=2e-4, steps=160, private_steps=30, batch=16, learning_rate=2e-4,
    dense_learning_rate=1e-4, distillation=0.5, max_length=64, train_items=4000, eval_items=500, start="dense",
)  # fmt: skip
QUICK_WRITING = replace(EFFORTS["D"], base_steps=24, steps=24, private_steps=4, train_items=200, eval_items=20)
"""Shows that it runs."""


def effort_of(domain: str, *, quick: bool) -> Effort:
    """What is spent on a domain."""
    if quick:
        return QUICK_WRITING if domain == "D" else QUICK
    return EFFORTS[domain]
