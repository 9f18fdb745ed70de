"""What moves elements: views, slices, joins, ranges, look-ups by index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from weightpager.compiler.graph.builder import Builder, Type, Value, stated, traced_type
from weightpager.errors import NotExportableError

_END = 2**62  # torch says "to the end" by a number that no axis has


def _view(builder: Builder, node: fx.Node, x: Value, *_: Any) -> Value:
    return builder.reshaped(x, traced_type(builder, node).shape)


def _transpose(builder: Builder, node: fx.Node, x: Value, first: int, second: int) -> Value:
    axes = list(range(len(x.shape)))
    first, second = first % len(axes), second % len(axes)
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(builder, node, x, axes)


def _permute(builder: Builder, node: fx.Node, x: Value, axes: list[int]) -> Value:
    axes = [each % len(x.shape) for each in axes]
    shape = tuple(x.shape[each] for each in axes)
    return builder.emit("permute", [x], {"axes": axes}, Type(shape, x.dtype))


def _matrix_transpose(builder: Builder, node: fx.Node, x: Value) -> Value:
    return _transpose(builder, node, x, -2, -1)


def _expand(builder: Builder, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    type_ = traced_type(builder, node)
    if type_.shape == x.shape:
        return x
    added = len(type_.shape) - len(x.shape)
    for at, size in enumerate(type_.shape):
        if size is None and (at < added or x.shape[at - added] is not None):
            if at >= added and x.shape[at - added] == 1:  # to the number of classes; what broadcasts may stay at 1
                continue
            raise NotExportableError("an expansion to a size that depends on batch, length or classes")
    shape = stated(type_.shape, len(type_.shape))
    kept = tuple(x.shape[at - added] if size is None and at >= added else size for at, size in enumerate(type_.shape))
    return builder.emit("expand", [x], {"shape": shape}, Type(kept, x.dtype))


def _slice(
    builder: Builder, node: fx.Node, x: Value, axis: int = 0, start: Any = 0, end: Any = None, step: int = 1
) -> Value:
    end = None if isinstance(end, int) and end > _END else end
    return builder.cut(x, axis % len(x.shape), 0 if start is None else start, end, step)


def _select(builder: Builder, node: fx.Node, x: Value, axis: int, index: Any) -> Value:
    axis %= len(x.shape)
    if not isinstance(index, int):
        raise NotExportableError("a choice of an element by a size")
    one = builder.cut(x, axis, index, None if index == -1 else index + 1)
    return builder.reshaped(one, (*x.shape[:axis], *x.shape[axis + 1 :]))


def _split(builder: Builder, node: fx.Node, x: Value, sizes: Any, axis: int = 0) -> list[Value]:
    axis %= len(x.shape)
    total = x.shape[axis]
    if not isinstance(total, int):
        raise NotExportableError(f"{node.target} along batch, length or classes")
    if isinstance(sizes, int):
        sizes = [min(sizes, total - start) for start in range(0, total, sizes)]
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    return [builder.cut(x, axis, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _chunk(builder: Builder, node: fx.Node, x: Value, count: int, axis: int = 0) -> list[Value]:
    total = x.shape[axis % len(x.shape)]
    if not isinstance(total, int):
        raise NotExportableError(f"{node.target} along batch, length or classes")
    return _split(builder, node, x, -(-total // count), axis)


def _unbind(builder: Builder, node: fx.Node, x: Value, axis: int = 0) -> list[Value]:
    axis %= len(x.shape)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return [builder.reshaped(each, shape) for each in _split(builder, node, x, 1, axis)]


def _item(builder: Builder, node: fx.Node, parts: list[Value], at: int) -> Value:
    return parts[at]


def _concat(builder: Builder, node: fx.Node, parts: list[Value], axis: int = 0) -> Value:
    type_ = traced_type(builder, node)
    axis %= len(type_.shape)
    given = [builder.cast(each, type_.dtype) for each in parts if each.shape[axis] != 0]
    return given[0] if len(given) == 1 else builder.emit("concat", given, {"axis": axis}, type_)


def _stack(builder: Builder, node: fx.Node, parts: list[Value], axis: int = 0) -> Value:
    type_ = traced_type(builder, node)
    axis %= len(type_.shape)
    shape = (*type_.shape[:axis], 1, *type_.shape[axis + 1 :])
    given = [builder.reshaped(builder.cast(each, type_.dtype), shape) for each in parts]
    return builder.emit("concat", given, {"axis": axis}, type_)


def _repeat_interleave(builder: Builder, node: fx.Node, x: Value, repeats: Any, axis: int, **_: Any) -> Value:
    """Each element so many times, one after the other."""
    if not isinstance(repeats, int):
        raise NotExportableError(f"{node.target} by a size")
    axis %= len(x.shape)
    front, behind = x.shape[: axis + 1], x.shape[axis + 1 :]
    one = builder.reshaped(x, (*front, 1, *behind))
    copies = builder.emit("concat", [one] * repeats, {"axis": axis + 1}, Type((*front, repeats, *behind), x.dtype))
    return builder.reshaped(copies, traced_type(builder, node).shape)


def _arange(builder: Builder, node: fx.Node, *bounds: Any, **_: Any) -> Value:
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    whole = all(isinstance(each, (int, str)) for each in (start, end)) and isinstance(step, int) and step > 0
    if not whole:
        raise NotExportableError("a range of other than whole numbers")
    type_ = traced_type(builder, node)
    made = builder.emit("arange", [], {"start": start, "end": end, "step": step}, Type(type_.shape, "int64"))
    return builder.cast(made, type_.dtype)


def _full(value: float | None = None) -> Callable[..., Value]:
    def translate(builder: Builder, node: fx.Node, *given: Any, **_: Any) -> Value:
        type_ = traced_type(builder, node)
        number = given[1] if value is None else value
        if isinstance(number, (Value, str)) or number is None:
            raise NotExportableError(f"{node.target} of no number")
        filled = bool(number) if type_.dtype == "bool" else int(number) if type_.dtype == "int64" else float(number)
        attributes = {"shape": stated(type_.shape, 0), "value": int(filled) if type_.dtype == "bool" else filled}
        return builder.emit("full", [], {**attributes, "dtype": type_.dtype}, type_)

    return translate


def _gather(builder: Builder, node: fx.Node, x: Value, axis: int, index: Value, **_: Any) -> Value:
    return builder.emit("gather", [x, index], {"axis": axis % len(x.shape)}, traced_type(builder, node))


def _index_select(builder: Builder, node: fx.Node, x: Value, axis: int, ids: Value) -> Value:
    return builder.emit("take", [x, ids], {"axis": axis % len(x.shape)}, traced_type(builder, node))


def _index(builder: Builder, node: fx.Node, x: Value, ids: list[Value | None]) -> Value:
    type_ = traced_type(builder, node)
    given = [at for at, each in enumerate(ids) if each is not None]
    if len(given) == 1 and (only := ids[given[0]]) is not None and only.dtype == "int64":
        return builder.emit("take", [x, only], {"axis": given[0]}, type_)
    if given == [0, 1] and len(x.shape) == 3:  # of each text one token
        texts, tokens = ids[0], ids[1]
        assert texts is not None
        assert tokens is not None
        if _is_every_text(builder, texts) and len(tokens.shape) == 1:
            chosen = builder.reshaped(tokens, (tokens.shape[0], 1, 1))
            one = builder.emit("gather", [x, chosen], {"axis": 1}, Type((x.shape[0], 1, x.shape[2]), x.dtype))
            return builder.reshaped(one, type_.shape)
    raise NotExportableError(f"{node.target} by several indices, or a condition")


def _is_every_text(builder: Builder, ids: Value) -> bool:
    made = [node for node in builder.nodes if node.output == ids.operand.key]
    every = {"start": 0, "end": "batch", "step": 1}
    return bool(made) and made[0].op == "arange" and made[0].attributes == every


TRANSLATIONS: dict[str, Callable[..., Any]] = {
    **{
        f"aten.{name}": _view
        for name in (
            "view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "squeeze.dim",
            "squeeze.default", "squeeze.dims", "flatten.using_ints", "unflatten.int",
        )
    },
    "aten.transpose.int": _transpose,
    "aten.permute.default": _permute,
    "aten.t.default": _matrix_transpose,
    "aten.mT.default": _matrix_transpose,
    "aten.expand.default": _expand,
    "aten.expand_as.default": _expand,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.split.sizes": _split,
    "aten.chunk.default": _chunk,
    "aten.unbind.int": _unbind,
    "getitem": _item,
    "aten.cat.default": _concat,
    "aten.stack.default": _stack,
    "aten.repeat_interleave.self_int": _repeat_interleave,
    "aten.arange.default": _arange,
    "aten.arange.start": _arange,
    "aten.arange.start_step": _arange,
    "aten.full.default": _full(),
    "aten.full_like.default": _full(),
    "aten.new_full.default": _full(),
    **{f"aten.{name}": _full(0) for name in ("zeros.default", "zeros_like.default", "new_zeros.default")},
    **{f"aten.{name}": _full(1) for name in ("ones.default", "ones_like.default", "new_ones.default")},
    "aten.gather.default": _gather,
    "aten.index_select.default": _index_select,
    "aten.index.Tensor": _index,
}  # fmt: skip
"""torch's name → its translation."""
