"""`NativeModel`: what answers need of a task that native code runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightpager.answers.decoding import Draw, Piece
from weightpager.answers.model import (
    OF_GRIDS,
    Floats,
    Grids,
    Inputs,
    Integers,
    ModelLimits,
    PlacedFeatures,
    TaskModel,
    picture_features,
    positions,
)
from weightpager.backends.native.program import KVCache, KVPiece
from weightpager.backends.native.task import NativeTask
from weightpager.errors import BundleFormatError
from weightpager.graph.file import FEATURES, graph_file

_UNBOUNDED = 2**62


class NativeModel(TaskModel):
    def __init__(
        self,
        task: NativeTask,
        limits: ModelLimits,
        eos_token_ids: frozenset[int],
        *,
        narrow: bool = False,
        exact: bool = False,
    ) -> None:
        """Nothing is computed yet.

        Args:
            task: whose weights and graph are there.
            limits: of the model.
            eos_token_ids: that end a text.
            narrow: keeps keys and values of earlier tokens in float16.
            exact: as `Reading` says it; so weights of whole numbers are.
        """
        self.exact = exact
        self.task, self.limits, self.cache, self.eos_token_ids = task, limits, task.cache, eos_token_ids
        self._narrow = narrow

    def logits(self, inputs: Inputs) -> Floats:
        outputs = self.below(self._with_positions(inputs))
        return self.head(outputs["hidden"]) if self.task.has_head else outputs["logits"]

    def hidden(self, inputs: Inputs) -> Floats:
        return self.below(self._with_positions(inputs))["hidden"]

    def features(self, pixels: Floats, grids: Grids | None = None) -> Floats | list[Floats]:
        """`NativeTask.features`, each picture alone.

        Raises:
            TypeError: the task reads no pictures among its words.
            BundleFormatError: the graph can't take pictures of the form that it says.
        """
        try:
            return self.task.features(pixels, grids)
        except (ValueError, IndexError) as error:
            if pixels.dtype == np.float32 and pixels.ndim == (4 if grids is None else 3):
                raise self._graphs(error, FEATURES) from error
            raise

    def below(self, inputs: Inputs, cache: KVCache | None = None) -> dict[str, Floats]:
        """`NativeTask.below`, whose errors are the caller's unless the model can read these inputs.

        Raises:
            BundleFormatError: it can, and its graph can't take them.
        """
        try:
            return self.task.below(inputs, cache)
        except (ValueError, IndexError) as error:
            if self._reads(inputs, 0 if cache is None else cache.tokens):
                raise self._graphs(error) from error
            raise

    def head(self, hidden: Floats) -> Floats:
        """`NativeTask.head` of what `below` gave. Raises `BundleFormatError` if its graph can't take that."""
        try:
            return self.task.head(hidden)
        except (ValueError, IndexError) as error:
            raise self._graphs(error) from error

    def _graphs(self, error: Exception, kind: str = "") -> BundleFormatError:
        """What shapes don't show, such as a number in a graph that is no row of a table."""
        expected = "what runs on inputs that the model can read"
        return BundleFormatError(graph_file(kind or self.task.graph.kind), "nodes", expected, error)

    def _reads(self, inputs: Inputs, earlier: int) -> bool:
        """Whether these are `Inputs` that the model can read behind ``earlier`` tokens, as far as it says."""
        if "pixel_values" in inputs:
            pixels = inputs["pixel_values"]
            return pixels.dtype == np.float32 and pixels.ndim == 4
        ids, mask = (np.asarray(inputs.get(name)) for name in ("input_ids", "attention_mask"))
        if not (ids.dtype == mask.dtype == np.int64 and ids.ndim == 2 and ids.size):
            return False
        end = earlier + ids.shape[1]
        within = end <= self.context and 0 <= ids.min() <= ids.max() < self.vocab_size
        return bool(within and mask.shape == (len(ids), end) and np.isin(mask, (0, 1)).all())

    def reading(self, texts: int, most: int | None, placed: PlacedFeatures | None = None) -> NativeReading:
        planned = _UNBOUNDED if most is None else self.cache.bytes(texts, most)
        return NativeReading(self, KVCache(planned, float16=self._narrow), placed)

    def _with_positions(self, inputs: Inputs) -> Inputs:
        """Inputs with what the graph takes beside them: positions, and what stands in the place of words."""
        if not self.task.has_head or "attention_mask" not in inputs:
            return inputs
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        found = {name: value for name, value in inputs.items() if name not in OF_GRIDS}
        placed = None
        if (form := self.limits.pictures) is not None and found.pop("pixel_values", None) is not None:
            placed = self.task.place(ids, mask, *picture_features(inputs, form, self.features))
        if placed is not None:
            found |= {"features": placed.rows, "feature_index": placed.index}
        return {**found, "position_ids": positions(mask, None if placed is None else placed.positions)}


class NativeReading:
    """Implements `weightpager.answers.decoding.Reading`."""

    stoppable = True

    def __init__(self, model: NativeModel, cache: KVCache, placed: PlacedFeatures | None = None) -> None:
        self._model, self._cache, self._placed = model, cache, placed
        self._prompts = None if placed is None else placed.positions

    @property
    def done(self) -> int:
        return self._cache.tokens

    def hidden(self, ids: Integers, mask: Integers) -> Floats:
        inputs: dict[str, Integers | Floats] = {
            "input_ids": ids[:, self.done :],
            "attention_mask": mask,
            "position_ids": positions(mask, self._prompts)[..., self.done :],
        }
        if self._placed is not None and (here := self._placed.between(self.done, ids.shape[1])) is not None:
            inputs |= {"features": here.rows, "feature_index": here.index}
        found = self._model.below(inputs, self._cache)["hidden"]
        if self._placed is not None and self._placed.index.shape[1] <= self.done:
            self._placed = None  # all of them have been read
        return found

    def next(self, ids: Integers, mask: Integers, draw: Draw | None) -> Integers:
        logits = self._model.head(self.hidden(ids, mask)[:, -1:])[:, 0]
        likeliest: Integers = np.argmax(logits, -1)
        return likeliest if draw is None else draw(logits)

    @property
    def exact(self) -> bool:
        return self._model.exact

    def piece(self, start: int, *, whole: bool) -> KVPiece | None:
        stop = self.done - self.done % KVCache.block * whole
        return self._cache.piece(start, stop) if start % KVCache.block == 0 and stop > start else None

    def take_over(self, piece: Piece, tokens: int) -> None:
        assert isinstance(piece, KVPiece)
        self._cache.append(piece, tokens)

    def keep(self, texts: Sequence[int]) -> None:
        if self._cache.tokens:
            self._cache.select(list(texts))
        if self._placed is not None:
            self._placed = self._placed.of_texts(texts)
        if self._prompts is not None:
            self._prompts = self._prompts[:, list(texts)]
