"""weightpager itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.model import Inputs, Integers, PlacedFeatures, TaskModel, picture_features
from weightpager.answers.work import Sampling
from weightpager.bundle import TaskEntry
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager_lab.contest.rivals.rival import DTYPE, Rival, Setting, slow_engines


class Ours(Rival):
    """An engine over the bundle, with the backend that a device takes by itself, which may need no torch.

    Args:
        setting: of the contest.
        wait: whether a switch ends when all pages are there; otherwise the model runs while they are loaded.
        backend: as an engine is asked for it.
    """

    def __init__(self, setting: Setting, *, wait: bool = True, backend: str = "auto") -> None:
        bundle = setting.bundle
        config = EngineConfig(setting.budget, dtype=DTYPE, io_threads=setting.threads, backend=backend)
        with ExitStack() as opening:
            if setting.pace is not None:
                opening.enter_context(slow_engines(setting.pace.bytes_per_second))
            self._engine = opening.enter_context(Engine(bundle, config))
            self._opened = opening.pop_all()
        self._wait = wait
        self._files = [bundle.path / name for name in bundle.manifest.page_file_names()]
        self.backend = self._engine.report().backend

    def switch(self, task: str) -> Callable[..., Any]:
        module: Callable[..., Any] = self._engine.activate(task, wait=self._wait)
        return module

    def use_threads(self, count: int) -> None:
        if self.backend == "torch":  # native code takes all usable cores by itself
            import torch

            torch.set_num_threads(count)

    def threads(self) -> int:
        from weightpager.backends.native.program import thread_count

        return thread_count()  # torch's, where it is loaded

    def prepared(self, task: TaskEntry, inputs: Inputs) -> Mapping[str, Any]:
        if self.backend == "native":
            return inputs
        from weightpager_lab.contest.rivals.torch_rival import tensors

        return tensors(task, inputs)

    def run(self, module: Any, inputs: Mapping[str, Any]) -> None:
        if self.backend == "native":
            module(**inputs)
        else:
            from weightpager_lab.contest.rivals.torch_rival import forward

            forward(module, inputs)

    def write(self, task: str, inputs: Inputs) -> Iterator[int]:
        if self.backend == "torch":
            from weightpager_lab.contest.rivals.torch_rival import write

            return write(self.switch(task), inputs)
        model = self._engine.model(task)
        return likeliest(model, inputs["input_ids"], _placed(model, inputs))

    def forget(self) -> None:
        self._engine.evict()

    def files(self, task: str) -> list[Path]:  # noqa: ARG002 - any of them may hold a page of it
        return self._files

    def kernel_calls(self) -> dict[str, int] | None:
        if self.backend == "native":  # has no other way to multiply
            return None
        from weightpager.kernels.torch import calls

        return calls()

    def row_fault_seconds(self) -> float | None:
        rows = self._engine.report().rows
        return None if rows is None else rows.fault_seconds

    def weight_bytes(self) -> int:
        return self._engine.report().memory.total

    def paged_bytes(self) -> int:
        return self._engine.report().memory.arena

    def close(self) -> None:
        self._opened.close()


def likeliest(model: TaskModel, text: Integers, placed: PlacedFeatures | None = None) -> Iterator[int]:
    """The tokens that a text, [1, tokens], goes on with, each the likeliest; the first step reads the text, too.

    It never ends: the end of a text is a token as any other.
    """
    drawn: list[int] = []

    def see(tokens: Integers) -> npt.NDArray[np.bool_]:
        drawn.append(int(tokens[0]))
        return np.array([True])  # one at a time

    texts = model.grow(text, np.ones_like(text), Sampling(temperature=0), 0, placed=placed)
    while texts.unread:
        texts.read_piece()
    while True:
        texts.grow(1, see)
        yield drawn[-1]


def _placed(model: TaskModel, inputs: Inputs) -> PlacedFeatures | None:
    """The features of a prompt's pictures, computed anew; None without any."""
    pictures = model.limits.pictures
    if pictures is None or "pixel_values" not in inputs:
        return None
    seen = picture_features(inputs, pictures, model.features)
    return PlacedFeatures.of(inputs["input_ids"], inputs["attention_mask"], pictures.token_id, *seen)
