"""A model run layer by layer over a fixed set of batches: only the hidden states at one boundary are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Cache, PreTrainedModel

from weightpager.backends.torch.architecture import BASE
from weightpager.compiler.data import Batch
from weightpager.compiler.model.checkpoint import IN_MEMORY, Scratch
from weightpager.compiler.model.dense_model import repeated_layers
from weightpager.compiler.training.device import autocast
from weightpager.errors import CompileError

_ELSE = "use 'recover: {method: finetune}' or none"


@dataclass
class _Calls:
    """How the layers are called for one batch: what goes from layer to layer, and what each is given beside it.

    Attributes:
        hidden: what the next layer takes.
        others: other arguments and options of each layer that is called, by its number. Masks and positions of layers
            with a sliding window differ from those of others.
        tokens: bool [B, L], False at padding; None for images.
    """

    hidden: Tensor
    others: dict[int, tuple[tuple[Any, ...], dict[str, Any]]]
    tokens: Tensor | None


class _ReachedError(Exception):
    """What was looked for has been reached; the rest of the model isn't wanted."""


class LayerStream:
    """Hidden states of a model's batches before one of its repeated layers; they are held in the scratch.

    Layers must take hidden states first and return them (first), as those of transformers do.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Batch],
        scratch: Scratch = IN_MEMORY,
        *,
        part: range | None = None,
        looks: bool = False,
        before: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Run the model as far as its first layer.

        Args:
            model: with the layers.
            batches: what it is given.
            scratch: where hidden states are held.
            part: the numbers of those layers that feed each other; None for all.
            looks: whether they see the pictures in the batches' texts, of which no token is padding.
            before: weights of linear layers before these, by canonical names, in place of the model's.

        Raises:
            CompileError: the model has no repeated layers, or doesn't call the first one.
        """
        self._scratch = scratch
        self._base = model.base_model
        self._layers = repeated_layers(self._base)
        chosen = range(len(self._layers)) if part is None else part
        layers = {number: self._base.get_submodule(self._layers[number]) for number in chosen}
        prefix = model.base_model_prefix + "."
        others = {f"{prefix}{name.removeprefix(BASE)}.weight": value for name, value in (before or {}).items()}
        with torch.inference_mode(), autocast(model.device):
            self._calls = [self._held(_calls(model, layers, batch, others)) for batch in batches]
        for calls in self._calls if looks else ():
            calls.tokens = None

    def in_features(self, name: str) -> int:
        """How many inputs a linear layer has, by canonical name."""
        return self._linear(name).in_features

    def inputs(self, layer: int, weights: Mapping[str, Tensor], name: str) -> Iterator[Tensor]:
        """Run the layer that the stream stands before, batch by batch, as far as the linear layer ``name`` in it.

        ``weights`` replace those of linear layers, by canonical names.

        Returns:
            What that takes of each batch, without padding, float32 [tokens, in_features].

        Raises:
            CompileError: the linear layer wasn't called.
        """
        for calls in self._calls:
            x, tokens = self._watch(layer, weights, calls, [name])[name].float(), calls.tokens
            yield x[tokens] if tokens is not None and x.shape[:-1] == tokens.shape else x.flatten(0, -2)

    def fed_alike(self, layer: int, names: Sequence[str]) -> list[list[str]]:
        """Linear layers of a layer grouped by the very tensor that they take, in the order of execution."""
        seen = self._watch(layer, {}, self._calls[0], names)  # holds all of them: none takes the place of another
        groups: dict[tuple[int, tuple[int, ...], tuple[int, ...]], list[str]] = {}
        for name, x in seen.items():
            groups.setdefault((x.data_ptr(), x.shape, x.stride()), []).append(name)
        return list(groups.values())

    def advance(self, layer: int, weights: Mapping[str, Tensor]) -> None:
        """Move past a layer: its outputs replace its inputs."""
        for calls in self._calls:
            calls.hidden = self._run(layer, weights, calls)
            self._held(calls)

    def _held(self, calls: _Calls) -> _Calls:
        calls.hidden = self._scratch.hold(calls.hidden)
        return calls

    def _watch(
        self, layer: int, weights: Mapping[str, Tensor], calls: _Calls, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """What linear layers take; the run ends with the last of them."""
        seen: dict[str, Tensor] = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
                seen[name] = arguments[0]
                if len(seen) == len(names):
                    raise _ReachedError

            return hook

        with ExitStack() as hooks, suppress(_ReachedError):
            for name in names:
                hooks.callback(self._linear(name).register_forward_pre_hook(watch(name)).remove)
            self._run(layer, weights, calls)
        if len(seen) < len(names):
            raise CompileError(f"closed-form recovery: {sorted(set(names) - set(seen))} saw no input; {_ELSE}")
        return seen

    def _run(self, layer: int, weights: Mapping[str, Tensor], calls: _Calls) -> Tensor:
        prefix = self._layers[layer]
        if layer not in calls.others:
            raise CompileError(f"closed-form recovery: the model doesn't call {prefix}; {_ELSE}")
        arguments, options = calls.others[layer]
        replaced = {f"{name.removeprefix(BASE + prefix + '.')}.weight": value for name, value in weights.items()}
        with torch.inference_mode(), autocast(calls.hidden.device):
            whole = (calls.hidden, *arguments)
            output = functional_call(self._base.get_submodule(prefix), replaced, whole, options)
        return _given(output, calls.hidden)

    def _linear(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self._base.get_submodule(name.removeprefix(BASE)))


def check_layers(model: PreTrainedModel, batch: Batch, count: int, first: int = 0) -> None:
    """See that each of so many layers from the ``first`` on runs once, and takes what the one before it gives."""
    base, ran = model.base_model, 0
    given: Tensor | None = None
    names = repeated_layers(base)[first : first + count]

    def check(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            nonlocal ran, given
            taken = options["hidden_states"] if "hidden_states" in options else arguments[0]
            if number < ran:
                expected = f"expected layers that run once each, found {names[number]} run again"
                raise CompileError(f"closed-form recovery: {expected}; {_ELSE}")
            if number > ran or (given is not None and not torch.equal(taken, given)):
                expected = f"expected layers that take what the one before gives, found other inputs of {names[number]}"
                raise CompileError(f"closed-form recovery: {expected}; {_ELSE}")
            ran, given = ran + 1, _given(output, taken).clone()

        return hook

    with ExitStack() as hooks, torch.inference_mode():
        for number, name in enumerate(names):
            layer = base.get_submodule(name)
            hooks.callback(layer.register_forward_hook(check(number), with_kwargs=True).remove)
        base(**batch.inputs)
    if ran < count:
        raise CompileError(f"closed-form recovery: the model doesn't call {names[ran]}; {_ELSE}")


def _given(output: Any, taken: Tensor) -> Tensor:
    """The hidden states that a layer returns."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor) or hidden.shape != taken.shape:
        raise CompileError(f"closed-form recovery: expected layers that return hidden states; {_ELSE}")
    return hidden


def _calls(model: PreTrainedModel, layers: Mapping[int, nn.Module], batch: Batch, before: dict[str, Tensor]) -> _Calls:
    first = min(layers, default=0)
    hidden: list[Tensor] = []
    others: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def catch(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            # A cache would grow with every run, and each would attend to what the ones before it have left there.
            arguments = tuple(None if isinstance(value, Cache) else value for value in arguments)
            options = {key: None if isinstance(value, Cache) else value for key, value in options.items()}
            if "use_cache" in options:
                options["use_cache"] = False
            taken = options.pop("hidden_states", None)
            if taken is None:
                taken, *rest = arguments
                arguments = tuple(rest)
            if number == first and not hidden:
                hidden.append(taken)
            others.setdefault(number, (arguments, options))
            if len(others) == len(layers):
                raise _ReachedError

        return hook

    with ExitStack() as hooks, suppress(_ReachedError):
        for number, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(catch(number), with_kwargs=True).remove)
        functional_call(model, before, kwargs=dict(batch.inputs))
    if not hidden:
        raise CompileError(f"closed-form recovery: the model doesn't call its first layer; {_ELSE}")
    return _Calls(hidden[0], others, batch.tokens)
