"""`NativeTask`: a task's forward pass, numpy in and numpy out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from weightpager.answers.model import CacheSize
from weightpager.backends.native.operands import Array
from weightpager.backends.native.program import KVCache, Program
from weightpager.backends.task_parts import Gate, no_arrays
from weightpager.graph import Graph


class NativeTask:
    """One task of an open engine, to be called: numpy in, numpy out. Several threads may call it; they take turns.

    Attributes:
        graph: the graph of the task's kind; ``graph.inputs`` and ``graph.outputs`` say what a call takes and gives.
        cache: what keys and values of earlier tokens take, in the model's own width.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        programs: tuple[Program, ...],
        gate: Gate,
        context: int,
        cache: CacheSize,
        *,
        numbers_by_mask: bool = False,
    ) -> None:
        """Nothing is computed yet.

        Args:
            name: of the task.
            graph: the graph of the task's kind.
            programs: that run it, one after the other: what gives ``hidden``, and what gives ``logits`` of that where
                few of a forward's tokens need any.
            gate: the task's gate.
            context: tokens that the model says it can read.
            cache: as the attribute.
            numbers_by_mask: whether positions, where a call states none, leave out tokens that its mask hides.
        """
        self._name, self.graph, self.cache = name, graph, cache
        self._below, self._head = programs[0], programs[1] if len(programs) > 1 else None
        self._gate = gate
        self._context = context
        self._numbers_by_mask = numbers_by_mask

    def __repr__(self) -> str:
        takes, gives = ([each.name for each in side] for side in (self.graph.inputs, self.graph.outputs))
        return f"<NativeTask {self._name!r}: {self.graph.kind}, {', '.join(takes)} -> {', '.join(gives)}>"

    @property
    def has_head(self) -> bool:
        """Whether `head` gives the logits, of those tokens that need any, and `below` only what it reads."""
        return self._head is not None

    def __call__(self, cache: KVCache | None = None, **inputs: Array) -> dict[str, Array]:
        """The task's outputs by name, float32: ``logits``, and of language models ``hidden``, too.

        It runs while the task is active; where its pages are still being loaded, each model layer waits for its own.

        Args:
            cache: keys and values of earlier tokens, which those of this call are appended to.
            inputs: by name, as the graph has them: ``input_ids`` int64 [batch, length], or ``pixel_values`` float32
                [batch, channels, height, width]. Where they are left out, ``attention_mask`` [batch, earlier + length]
                has all tokens seen, and ``position_ids`` [batch, length] are those that the model's own code gives:
                OPT numbers the tokens that the mask shows, all others count padding on the left, too. Where a text's
                padding mustn't matter, state them.

        Raises:
            TypeError: an input comes without its name.
            ValueError: an input is missing or unknown, or its dtype or shape isn't what the graph takes.
            IndexError: an id isn't in its table.
            MemoryError: activations, or keys and values, would take more than they may.
            TaskNotActiveError: the task isn't active, so its pages may be absent.
            SwitchFailedError: a page couldn't be loaded.

        Examples:
            >>> import numpy as np
            >>> with engine.task("spam") as task:
            ...     logits = task(input_ids=np.array([[2, 9, 4, 3]]))["logits"]
            >>> logits.shape
            (1, 2)
        """
        if cache is not None and not isinstance(cache, KVCache):
            raise no_arrays(self._name, cache)
        known = {each.name for each in self.graph.inputs}
        if unknown := sorted(inputs.keys() - known):
            raise ValueError(f"inputs: expected {', '.join(sorted(known))}, got {', '.join(unknown)}")
        all_inputs = self._with_defaults(inputs, cache)
        earlier = 0 if cache is None else cache.tokens
        try:
            outputs = self.below(all_inputs, cache)
        except (ValueError, IndexError) as error:
            tokens = earlier + _length(inputs)
            if tokens > self._context:  # a model without a table of positions may read more than it says
                at_most = f"the model reads at most {self._context}"
                raise type(error)(f"input_ids: {tokens} tokens, {at_most}; cut the text") from error
            raise
        return outputs if self._head is None else {**outputs, "logits": self.head(outputs["hidden"])}

    def below(self, inputs: Mapping[str, Array], cache: KVCache | None = None) -> dict[str, Array]:
        """The outputs by name, without those of the `head` if it has one.

        All inputs are stated. Errors are those of a call.
        """
        return self._below.run(inputs, cache, self._gate)

    def head(self, hidden: Array) -> Array:
        """Logits of hidden states, float32 [batch, tokens, words] of [batch, tokens, width]; only if it `has_head`.

        Errors are those of a call.
        """
        assert self._head is not None
        return self._head.run({"hidden": hidden}, gate=self._gate)["logits"]

    def _with_defaults(self, inputs: Mapping[str, Array], cache: KVCache | None) -> Mapping[str, Array]:
        """Inputs, and what needn't be stated; without ids the program says what is missing."""
        ids = inputs.get("input_ids")
        if ids is None or np.ndim(ids) != 2:
            return inputs
        batch, length = np.shape(ids)
        end = length + (0 if cache is None else cache.tokens)
        seen = np.ones((batch, end), np.int64)
        mask = inputs.get("attention_mask", seen)
        by_mask = self._numbers_by_mask and np.shape(mask) == seen.shape
        made = {"attention_mask": seen, "position_ids": positions(mask if by_mask else seen)[:, end - length :]}
        return {**{each.name: made[each.name] for each in self.graph.inputs if each.name in made}, **inputs}


def positions(mask: Array) -> Array:
    """Each token's number among its text's, int64 [texts, tokens]; padding on the left has none and gets 0."""
    numbers: Array = np.maximum(np.cumsum(mask, 1) - 1, 0)
    return numbers


def _length(inputs: Mapping[str, Array]) -> int:
    """Tokens of each text; 0 where the inputs aren't texts."""
    shape = np.shape(inputs.get("input_ids", ()))
    return int(shape[1]) if len(shape) == 2 else 0
