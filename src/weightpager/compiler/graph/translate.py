"""From a module to a draft: traced by torch.export, then translated node by node."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, _trace
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import output_capturing

from weightpager.backends.torch.architecture import takes_patches
from weightpager.compiler.graph.aten import TRANSLATIONS
from weightpager.compiler.graph.builder import Builder, Called, CallForm, Draft, Value
from weightpager.compiler.model.paged_weights import parameters
from weightpager.errors import ExportFailedError, NotExportableError
from weightpager.graph import Graph, GraphOutput, Operand

NAME = "weightpager"
"""The name by which transformers knows the implementation."""

_SEGMENTS = "weightpager_flash"
"""The same of a tower whose patches see some of each other: only where its name says ``flash``, it calls once for all.

Borders of segments then come as ``cu_seq_lens_q``; what a trace has there are the segments' numbers, none for one."""

_IGNORED = frozenset({
    "cache_position", "cu_seq_lens_k", "deterministic", "encoder_hidden_states", "head_mask", "max_length_k",
    "max_length_q", "output_attentions", "output_hidden_states", "past_key_values", "position_ids", "return_dict",
    "use_cache",
})  # fmt: skip
"""Arguments that modules pass along and that change nothing here; others must be None."""


@torch.library.custom_op("weightpager::attention", mutates_args=())
def traced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> Tensor:
    """What a trace has in an attention's place; it computes nothing."""
    return query.new_zeros((*query.shape[:-1], value.shape[-1]))


@traced_attention.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, *_settings: object) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op("weightpager::segment_attention", mutates_args=())
def traced_segment_attention(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scale: float) -> Tensor:
    """What a trace has in the place of an attention that looks inside of segments alone; it computes nothing."""
    return query.new_zeros((*query.shape[:-1], value.shape[-1]))


@traced_segment_attention.register_fake
def _(query: Tensor, _key: Tensor, value: Tensor, _segments: Tensor, _scale: float) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op("weightpager::local_mask", mutates_args=())
def traced_local_mask(mask: Tensor, size: int) -> Tensor:
    """What a trace has in place of a mask that hides distant tokens, too; the padded ones are all that it has."""
    return mask.clone()


@traced_local_mask.register_fake
def _(mask: Tensor, _size: int) -> Tensor:
    return torch.empty_like(mask)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Transformers' signature of an attention: heads before tokens in, behind them out."""
    segments = others.pop("cu_seq_lens_q", None)
    given = (name for name, value in others.items() if value is not None and value is not False)
    unknown = sorted(name for name in given if name not in _IGNORED)
    if unknown:
        raise NotExportableError(f"attention with {', '.join(unknown)}")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise NotExportableError("attention with a mask, or a bias, of its own for each pair of tokens")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    if segments is not None and segments.numel():
        return traced_segment_attention(query, key, value, segments, scale).transpose(1, 2), None
    attended = traced_attention(
        query, key, value, attention_mask, scale, causal, sliding_window or 0, float(softcap or 0.0)
    )
    return attended.transpose(1, 2), None


def _mask(*_: Any, attention_mask: Tensor | None = None, local_size: int | None = None, **__: Any) -> Tensor | None:
    """The mask of padded tokens as it is: which tokens see which follows from the attention's own settings.

    One that hides distant tokens is marked, so that an attention that doesn't state so is found.
    """
    if attention_mask is None or local_size is None:
        return attention_mask
    marked: Tensor = traced_local_mask(attention_mask, local_size)
    return marked


@contextmanager
def traced(module: PreTrainedModel) -> Iterator[None]:
    """Have a module's attentions traced as one operator each. Raises `NotExportableError` where it has its own way."""
    AttentionInterface.register(NAME, _forward)
    AttentionInterface.register(_SEGMENTS, _forward)
    AttentionMaskInterface.register(NAME, _mask)
    before = module.config._attn_implementation
    try:
        if not module._can_set_attn_implementation():
            raise NotExportableError(f"the attention of {type(module).__name__}, which is its own")
        module.set_attn_implementation(NAME)
        if takes_patches(module.config):
            module.config.vision_config._attn_implementation = _SEGMENTS
        yield
    finally:
        module.set_attn_implementation(before)


_SIZES = {"batch": 3, "length": 7, "features": 5}
"""Sizes of the traced inputs: none is 1, and they differ, so that torch doesn't take one for the other."""

_CHECKS = ("aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_scalar.default",
           "aten.sym_constrain_range_for_size.default")  # fmt: skip


_one_at_a_time = threading.RLock()
_QUESTIONS = ("is_compiling", "is_exporting")
_KERNELS = "_ignore_backend_decomps"
"""What switches oneDNN off while torch.export traces."""

_COMPILING = "is_torchdynamo_compiling"


def draft_of(module: PreTrainedModel, form: CallForm, classes: int) -> Draft:
    """A module's forward pass in the operators of graphs.

    The module is in evaluation mode; its parameters need no values, buffers that its constructor computes do.
    ``classes`` is the size that stands for the number of a task's classes.

    Raises:
        NotExportableError: says what can't be translated.
    """
    names, buffers = _canonical_names(module), dict(module.named_buffers())  # before it loses its values
    program = _traced(module.to("meta"), form)
    _check_lengths(program, module)
    builder, placeholders = (
        Builder(_dimensions(program, form), classes),
        _Placeholders.of(program, form, names, buffers),
    )
    found: dict[fx.Node, Any] = {}
    program.graph.eliminate_dead_code()  # such as layers behind those that features are taken from
    for node in program.graph.nodes:
        if node.op == "placeholder":
            found[node] = placeholders.value(node, builder)
        elif node.op == "call_function":
            found[node] = _translated(builder, node, found)
        elif node.op == "output":
            results = [found[each] for each in node.args[0]]
        else:
            raise NotExportableError(f"a traced {node.op}")
    if any(each.operand.kind != "value" for each in results):
        raise NotExportableError("a module that computes nothing")
    outputs = tuple(GraphOutput(name, str(each.operand.key)) for name, each in zip(form.outputs, results, strict=True))
    graph = Graph(form.kind, form.dims, form.inputs, tuple(builder.nodes), outputs, tuple(builder.constants))
    return Draft(graph, builder.types)


@dataclass(frozen=True)
class _Placeholders:
    """What the inputs of a trace stand for, by the names of their nodes.

    Attributes:
        parameters: canonical names of parameters and persistent buffers.
        constants: other buffers, and tensors that the trace has lifted out of the code; each with its name there.
        inputs: names of what a call states.
    """

    parameters: Mapping[str, str]
    constants: Mapping[str, tuple[str, Tensor]]
    inputs: Mapping[str, str]

    @classmethod
    def of(
        cls, program: ExportedProgram, form: CallForm, names: Mapping[str, str], buffers: Mapping[str, Tensor]
    ) -> _Placeholders:
        """Read a trace's signature.

        ``names`` are those of the module's parameters and persistent buffers, see `_canonical_names`; ``buffers`` the
        module's by its own names.
        """
        signature = program.graph_signature
        held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        held_names = {node: name.removeprefix("module.") for node, name in held.items()}
        lifted = signature.inputs_to_lifted_tensor_constants
        return cls(
            {node: names[name] for node, name in held_names.items() if name in names},
            {
                **{node: (name, buffers[name]) for node, name in held_names.items() if name not in names},
                **{node: (node, program.constants[name]) for node, name in lifted.items()},
            },
            {str(node): each.name for node, each in zip(signature.user_inputs, form.inputs, strict=True)},
        )

    def value(self, node: fx.Node, builder: Builder) -> Value:
        """The graph's value for an input of the trace."""
        if node.name in self.constants:
            name, tensor = self.constants[node.name]
            return builder.constant(_values(tensor, name))
        named = self.parameters.get(node.name)
        operand = Operand.input(self.inputs[node.name]) if named is None else Operand.parameter(named)
        return builder.given(operand, builder.type_of(node.meta["val"]))


def _canonical_names(module: PreTrainedModel) -> dict[str, str]:
    """A module's own name of each parameter and persistent buffer → its canonical one; tied ones have the same."""
    listed = {id(tensor): name for name, tensor in parameters(module).items()}
    return {name: listed[id(tensor)] for name, tensor in module.state_dict(keep_vars=True).items()}


def _check_lengths(program: ExportedProgram, module: PreTrainedModel) -> None:
    """Refuse a trace of short inputs alone: where code asks for a length, torch takes one branch and says up to when.

    A table of positions limits a length, too.

    Raises:
        NotExportableError: the trace doesn't hold for all lengths that the model reads.
    """
    longest = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    for found in program.range_constraints.values():
        most = found.upper
        if most.is_Integer and (not isinstance(longest, int) or most < longest):
            raise NotExportableError(f"a forward pass that is another one for inputs of more than {most}")


def _traced(module: PreTrainedModel, form: CallForm) -> ExportedProgram:
    shapes = tuple(
        {axis: Dim.DYNAMIC for axis, size in enumerate(each.shape) if isinstance(size, str)} for each in form.inputs
    )
    try:
        with traced(module), in_this_thread_alone(), _quiet(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            inputs = form.tensors(_SIZES)
            return torch.export.export(Called(module, form), inputs, dynamic_shapes=(shapes,), strict=False)
    except NotExportableError:
        raise
    except Exception as error:  # whatever torch or the architecture's own code says of a trace
        reason = str(error).strip().splitlines()
        raise ExportFailedError(f"torch.export: {reason[0][:200] if reason else type(error).__name__}") from error


@contextmanager
def in_this_thread_alone() -> Iterator[None]:
    """Have torch tell this thread alone that something is traced, and leave its kernels as they are.

    It would tell the whole process, and have it do without oneDNN meanwhile: modules in other threads would take other
    ways, and their outputs would differ in the last bits. Tensors without memory have no kernels to choose from.

    Transformers would collect hidden states for the whole process, too, if it knew.
    """
    here = threading.get_ident()

    def asked(question: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: threading.get_ident() == here and question()

    with _one_at_a_time, ExitStack() as replaced:
        for name in _QUESTIONS:
            replaced.enter_context(_replaced(torch.compiler, name, asked(getattr(torch.compiler, name))))
        if hasattr(output_capturing, _COMPILING):
            elsewhere = getattr(output_capturing, _COMPILING)
            replaced.enter_context(
                _replaced(output_capturing, _COMPILING, lambda: threading.get_ident() != here and elsewhere())
            )
        if hasattr(_trace, _KERNELS):
            replaced.enter_context(_replaced(_trace, _KERNELS, nullcontext))
        yield


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Another value under a module's name, inside the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch logs and prints in this thread about a trace that fails: the error says it."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(_OthersOnly(sys.stdout)), redirect_stderr(_OthersOnly(sys.stderr)):
            yield
    finally:
        logger.setLevel(level)


class _OthersOnly:
    """A stream on which the thread that makes it writes nothing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = threading.get_ident()

    def write(self, text: str) -> int:
        """Characters that were taken."""
        return len(text) if threading.get_ident() == self._silent else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _dimensions(program: ExportedProgram, form: CallForm) -> dict[str, str]:
    """The trace's symbols for the sizes that a call states."""
    by_name = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    dimensions = {}
    for name, given in zip(program.graph_signature.user_inputs, form.inputs, strict=True):
        for traced_size, size in zip(by_name[str(name)].meta["val"].shape, given.shape, strict=True):
            if isinstance(size, str):
                dimensions[str(traced_size)] = size
    return dimensions


def _translated(builder: Builder, node: fx.Node, found: dict[fx.Node, Any]) -> Any:
    traced_value = node.meta.get("val")
    if isinstance(traced_value, (int, torch.SymInt)):
        return builder.size(traced_value)
    name = getattr(node.target, "__name__", "") if not hasattr(node.target, "_schema") else str(node.target)
    if name in _CHECKS:
        return None
    translation = TRANSLATIONS.get(name)
    if translation is None:
        raise NotExportableError(f"the operator {name or node.target}")

    def resolved(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda each: found[each])

    try:
        return translation(builder, node, *resolved(node.args), **resolved(node.kwargs))
    except TypeError as error:  # arguments that no translation knows
        raise NotExportableError(f"the operator {name}: {error}") from error


def _values(tensor: Tensor, name: str) -> Any:
    if tensor.is_meta:
        raise NotExportableError(f"{name}, a tensor that is made while the module runs")
    if tensor.is_floating_point() and tensor.dtype != torch.float32:
        tensor = tensor.float()
    return tensor.detach().numpy()
