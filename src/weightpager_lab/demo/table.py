"""The demo's table: every way to serve the tasks, its weights in memory, its accuracy and what a switch costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from torch import Tensor

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint, whole_rows
from weightpager.bundle.report.advice import mean_switch_bytes
from weightpager.bundle.report.compile_report import DENSE, MASK, CompileReport, ControlScore, read_report
from weightpager_lab.contest.rivals.parameters import private, resident
from weightpager_lab.demo.result import OURS, RESIDENT, DemoSwitch, Resident

_CONTROLS = {MASK: "one shared mask in {dtype}", DENSE: "dense in bfloat16"}


ROW_SHARE = 8
"""One row of so many of the tables that come on demand is in memory."""


def row_bytes(bundle: Bundle) -> int | None:
    """Bytes of the budget for rows of tables; None where none come on demand."""
    return whole_rows(bundle) // ROW_SHARE or None


def own_parameters(bundle: Bundle) -> dict[str, int]:
    """By task, the bytes of all its parameters that aren't paged, embedding tables in int8."""
    shared = _bytes(resident(bundle, "int8").values())
    return {task: shared + _bytes(private(bundle, task).values()) for task in bundle.tasks}


def rows(
    bundle: Bundle, report: CompileReport, switches: Sequence[DemoSwitch], family: Mapping[str, Bundle]
) -> list[Resident]:
    """The table; ``family`` are bundles for other budgets, by what they hold.

    What isn't ours has its embedding tables in int8, beside weights in bfloat16 in bfloat16. One shared mask has what
    we have but for the mask: it is a bundle as well. So is a dense model in the pages' dtype, by a sparsity of 0: it
    stands there with whole tables, as others hold it, and with rows on demand.
    """
    heads = sum(_bytes(private(bundle, task).values()) for task in bundle.tasks)
    few_bits, wide = (_bytes(resident(bundle, dtype).values()) + heads for dtype in ("int8", "bfloat16"))
    ours = fmean(task.sparse for task in report.tasks)
    always = footprint(bundle, rows=row_bytes(bundle))
    as_bundle, dtype = always.total - always.tables, bundle.manifest.dtype
    parameters = {DENSE: wide, MASK: as_bundle}
    controls = []
    for control in sorted(report.controls, key=lambda control: control.resident_bytes):
        name = _CONTROLS.get(control.name, f"dense in {control.name}").format(dtype=dtype)
        if control.name in (dtype, "int8"):
            controls.append(_resident(f"{name}, a bundle of all blocks", as_bundle, control, is_bundle=True))
        others = parameters.get(control.name, few_bits)
        controls.append(_resident(name, others, control, is_bundle=control.name == MASK))
    others_of_ours = [_of_family(name, other) for name, other in family.items()]
    return [
        *_of_engine(bundle, ours, switches),
        *others_of_ours,
        *_of_checkpoints(bundle, ours, few_bits, switches),
        *controls,
    ]


def _resident(name: str, parameters: int, control: ControlScore, *, is_bundle: bool) -> Resident:
    """What never switches, beside so many bytes that aren't paged."""
    return Resident(
        name=name,
        bytes=parameters + control.resident_bytes,
        paged_bytes=control.resident_bytes,
        mean_bytes_per_switch=0,
        mean_metric=fmean(control.scores.values()),
        ms_per_switch=0.0,
        is_bundle=is_bundle,
    )


def _of_engine(bundle: Bundle, metric: float, switches: Sequence[DemoSwitch]) -> list[Resident]:
    stored = len(bundle.pages) * bundle.page_bytes
    read, ms = round(fmean(switch.bytes for switch in switches)), fmean(switch.ms for switch in switches)
    return [_of_ours(OURS, bundle, _arena(bundle), metric, read, ms), _of_ours(RESIDENT, bundle, stored, metric, 0)]


def _of_family(name: str, bundle: Bundle) -> Resident:
    metric = fmean(task.sparse for task in read_report(bundle).tasks)
    return _of_ours(f"weightpager, {name}", bundle, _arena(bundle), metric, mean_switch_bytes(bundle))


def _arena(bundle: Bundle) -> int:
    """Bytes of pages that the largest task needs."""
    return max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes


def _of_ours(name: str, bundle: Bundle, paged: int, metric: float, read: int, ms: float | None = None) -> Resident:
    """A bundle in an engine with memory for so many bytes of pages."""
    return Resident(
        name=name,
        bytes=footprint(bundle, rows=row_bytes(bundle)).total + paged,
        paged_bytes=paged,
        mean_bytes_per_switch=read,
        mean_metric=metric,
        ms_per_switch=ms,
    )


def _of_checkpoints(bundle: Bundle, metric: float, parameters: int, switches: Sequence[DemoSwitch]) -> list[Resident]:
    """Of each task's own sparse checkpoint, which has the bundle's own accuracy."""
    paged = {task: len(bundle.kept_locations(task)) * bundle.block_bytes for task in bundle.tasks}
    largest, total, dtype = max(paged.values()), sum(paged.values()), bundle.manifest.dtype
    own_bytes = own_parameters(bundle)
    whole = max(own_bytes[task] + paged[task] for task in bundle.tasks)
    return [
        Resident(
            name=f"own sparse {dtype} per task, weights reloaded",
            bytes=parameters + largest,
            paged_bytes=largest,
            mean_bytes_per_switch=round(fmean(switch.whole_sparse_bytes for switch in switches)),
            mean_metric=metric,
            ms_per_switch=fmean(switch.whole_sparse_ms for switch in switches),
        ),
        Resident(
            name=f"own sparse {dtype} per task, all reloaded",
            bytes=whole,
            paged_bytes=largest,
            mean_bytes_per_switch=round(fmean(switch.own_checkpoint_bytes for switch in switches)),
            mean_metric=metric,
            ms_per_switch=fmean(switch.own_checkpoint_ms for switch in switches),
        ),
        Resident(
            name=f"own sparse {dtype} per task, all resident",
            bytes=parameters + total,
            paged_bytes=total,
            mean_bytes_per_switch=0,
            mean_metric=metric,
            ms_per_switch=0.0,
        ),
    ]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
