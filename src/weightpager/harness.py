"""lm-evaluation-harness on a bundle: its own command, which knows a model named ``weightpager`` here.

    python -m weightpager.harness --model weightpager --model_args pretrained=writer.bundle,task=code --tasks wikitext

A task's module is one of transformers', so the harness's own class for those does the work.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers.processors import TemplateProcessing

from weightpager.bundle.format.manifest import FORMS
from weightpager.engine import Engine
from weightpager.errors import ConfigError
from weightpager.readers.tokenizer import begin_ids

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ModuleNotFoundError as error:
    what = f"expected the package {error.name!r}, found none; install 'weightpager[harness]'"
    raise ModuleNotFoundError(what, name=error.name) from error


@register_model("weightpager")
class TaskLM(HFLM):  # type: ignore[misc]
    """A task of a bundle, computed by an engine of its own, which is open as long as this lives."""

    def __init__(
        self,
        pretrained: str,
        task: str,
        budget: str | int | None = None,
        device: str | None = None,
        dtype: str = "auto",
        **options: Any,
    ) -> None:
        """Open the bundle and load the task.

        Args:
            pretrained: the bundle's directory.
            task: that generates text.
            budget: as of `Engine.from_pretrained`.
            device: as well, None for "cpu"; "cpu" too where torch finds no other, as the harness's command asks for
                "cuda:0" unless told otherwise.
            dtype: as well.
            options: those of `HFLM`, such as ``batch_size`` and ``max_length``; ``add_bos_token`` is what the task
                learnt with, unless told otherwise.

        Raises:
            ConfigError: the task is of another kind.
            WeightpagerError: as of `Engine.from_pretrained` and `Engine.activate`.
        """
        device = device if device is not None and torch.cuda.is_available() else "cpu"
        self._engine = Engine.from_pretrained(pretrained, budget=budget, device=device, dtype=dtype, backend="torch")
        name = str(task)  # the harness takes one that looks like a number for a number
        entry = self._engine.bundle.task(name)
        if not entry.writes:
            expected = f"expected {' or '.join(kind for kind, form in FORMS.items() if form.writes)}"
            raise ConfigError(f"task {name}: {expected}, found {entry.kind}; 'weightpager eval' measures it")
        tokenizer = self._engine.tokenizer()
        _only_begin(tokenizer)
        options = {"add_bos_token": entry.add_bos_token, **options}
        super().__init__(pretrained=self._engine.activate(name), tokenizer=tokenizer, **options)


def _only_begin(tokenizer: Any) -> None:
    """Have nothing put behind a text: the harness goes on with contexts."""
    inner = tokenizer.backend_tokenizer
    if begin := list(begin_ids(inner)):
        named = {"id": "begin", "ids": begin, "tokens": tokenizer.convert_ids_to_tokens(begin)}
        inner.post_processor = TemplateProcessing(single="begin $A", special_tokens=[named])


if __name__ == "__main__":
    cli_evaluate()
