"""``inspect``: what is in a bundle. It reads one without torch, and needs no engine."""

from __future__ import annotations

import math
from typing import Any

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint, row_memory, smallest_budget, whole_rows
from weightpager.bundle.format.names import private_file
from weightpager.bundle.format.row_table import CURVE, RowTableEntry
from weightpager.bundle.parts.adapter import adapter_bytes
from weightpager.bundle.report.advice import advise
from weightpager.bundle.report.compile_report import CompileReport, has_report, read_report
from weightpager.bundle.report.experts_left import experts_left
from weightpager.bundle.report.overlap import mean_overlap, overlap
from weightpager.bundle.report.paged_share import paged_share
from weightpager.cli import output, report_output
from weightpager.cli.options import Budget, BundlePath, Json, Storage
from weightpager.config import parse_bandwidth, parse_size
from weightpager.store import LocalStore, StorageModel, all_switches
from weightpager.store.row_share import room_for_pages, row_bytes

_NO_GRAPHS = "the bundle was written before there were graphs; weightpager upgrade adds them"
_MOST_PAIRS = 4


def inspect(bundle: BundlePath, budget: Budget = None, storage: Storage = "1GB/s", json: Json = False) -> None:
    """Show what is in a bundle: tasks, sizes, page fill, overlap, bytes to load for every ordered pair.

    Example: `weightpager inspect assistant.bundle --budget 64MiB`
    """
    opened = Bundle.open(bundle)
    report = read_report(opened) if has_report(opened) else None
    facts = _facts(opened, report, None if budget is None else parse_size(budget), parse_bandwidth(storage))
    if json:
        output.print_json(facts)
        return
    _print_facts(opened, report, facts)


def _facts(bundle: Bundle, report: CompileReport | None, budget: int | None, bandwidth: float) -> dict[str, Any]:
    store = LocalStore(bundle)
    store.close()
    return {
        **_page_facts(bundle),
        **_memory_facts(bundle, budget),
        "direct_io": store.direct,
        "tasks": [_task_facts(bundle, name) for name in bundle.tasks],
        "task_names": list(bundle.tasks),
        **_switch_facts(bundle, budget, bandwidth),
        **_model_facts(bundle, report),
        "scores": [] if report is None else report.tasks,
        "advice": None if report is None else advise(bundle, report, _room(bundle, budget)),
    }


def _page_facts(bundle: Bundle) -> dict[str, Any]:
    stored = len(bundle.pages) * bundle.page_bytes
    used = len(set().union(*(bundle.kept_locations(task).tolist() for task in bundle.tasks))) * bundle.block_bytes
    return {
        "bundle": str(bundle.path),
        "block": bundle.manifest.block,
        "dtype": bundle.manifest.dtype,
        "page_bytes": bundle.page_bytes,
        "pages": len(bundle.pages),
        "page_fill": used / stored if stored else 1.0,
        "dense_paged_bytes": bundle.dense_bytes,
        "stored_paged_bytes": stored,
    }


def _memory_facts(bundle: Bundle, budget: int | None) -> dict[str, Any]:
    fixed = footprint(bundle)
    every = fixed.largest - fixed.rows + whole_rows(bundle) + len(bundle.pages) * bundle.page_bytes
    return {
        "resident_bytes": fixed.resident,
        "private_bytes": fixed.private,
        "tables_bytes": fixed.tables,
        "block_tables_bytes": bundle.placement.nbytes,
        "expanded_tables_bytes": fixed.largest_table,
        "smallest_budget": smallest_budget(bundle),
        "largest_budget": every,
        "rows": [_row_facts(entry) for entry in bundle.manifest.row_tables],
        "least_row_bytes": fixed.rows,
        "row_bytes": row_bytes(bundle, every if budget is None else budget),
    }


def _switch_facts(bundle: Bundle, budget: int | None, bandwidth: float) -> dict[str, Any]:
    switches, matrix = all_switches(bundle, StorageModel(bandwidth)), overlap(bundle)
    slots = math.inf if budget is None else room_for_pages(bundle, budget) // bundle.page_bytes
    return {
        "overlap": matrix.tolist(),
        "mean_overlap": mean_overlap(matrix),
        "switches": switches,
        "budget": budget,
        "pairs_that_do_not_fit": [
            [switch.from_task, switch.to_task] for switch in switches if switch.peak_pages > slots
        ],
        "tasks_that_do_not_fit": [task for task in bundle.tasks if len(bundle.pages_of(task)) > slots],
    }


def _model_facts(bundle: Bundle, report: CompileReport | None) -> dict[str, Any]:
    manifest, share, block = bundle.manifest, paged_share(bundle), bundle.manifest.block_shape
    return {
        "paged_share": share.share,
        "parameters": share,
        "experts": experts_left(bundle),
        "not_paged": manifest.resident_reasons,
        "graphs": bundle.graph_kinds,
        "without_graph": _without_graph(bundle, report),
        "measured_with": None if report is None else report.backend,
        "tied": {} if report is None else report.tied,
        "tied_tables": [one.plain() | {"memory_bytes": one.memory(block)} for one in manifest.tied_tables],
    }


def _room(bundle: Bundle, budget: int | None) -> int | None:
    return None if budget is None else max(0, room_for_pages(bundle, budget))


def _without_graph(bundle: Bundle, report: CompileReport | None) -> dict[str, str]:
    """The kinds of tasks that have no graph, and why."""
    known = {} if report is None else report.without_graph
    kinds = {task.kind for task in bundle.tasks.values()} - {*bundle.graph_kinds}
    return {kind: known.get(kind, _NO_GRAPHS) for kind in sorted(kinds)}


def _task_facts(bundle: Bundle, name: str) -> dict[str, Any]:
    kept = len(bundle.kept_locations(name)) * bundle.block_bytes
    pages = len(bundle.pages_of(name))
    task = bundle.task(name)
    return {
        "name": name,
        "kind": task.kind,
        "classes": len(task.classes),
        "density": kept / bundle.dense_bytes,
        "kept_bytes": kept,
        "pages": pages,
        "page_bytes": pages * bundle.page_bytes,
        "over_read": 1 - kept / (pages * bundle.page_bytes) if pages else 0.0,
        "private_bytes": bundle.entry(private_file(name)).bytes + adapter_bytes(bundle, name),
    }


def _row_facts(entry: RowTableEntry) -> dict[str, Any]:
    curve = entry.curve()
    return {
        "name": entry.name,
        "rows": entry.rows,
        "columns": entry.columns,
        "stored_bytes": entry.bytes,
        "memory_bytes": entry.rows * row_memory(entry),
        "lookups": entry.lookups,
        "hits": {f"1/{part}": float(curve[CURVE // part]) for part in (32, 16, 8, 4, 2)},
    }


def _print_facts(bundle: Bundle, report: CompileReport | None, facts: dict[str, Any]) -> None:
    rows = [
        [
            task["name"],
            task["kind"],
            f"{task['density']:.2f}",
            output.size(task["kept_bytes"]),
            task["pages"],
            f"{task['over_read']:.1%}",
            output.size(task["private_bytes"]),
        ]
        for task in facts["tasks"]
    ]
    output.table(
        f"{bundle.path}: blocks {facts['block']} {facts['dtype']}",
        ["task", "kind", "density", "kept", "pages", "over-read", "private"],
        rows,
    )
    output.explain("over-read", "private")
    names = facts["task_names"]
    output.matrix(
        f"overlap (mean {facts['mean_overlap']:.3f}): share of the next task's bytes that the last one keeps too",
        names,
        [[f"{cell:.2f}" for cell in row] for row in facts["overlap"]],
    )
    load = {(switch.from_task, switch.to_task): output.size(switch.bytes) for switch in facts["switches"]}
    output.matrix("bytes to load", names, [[load.get((a, b), "·") for b in names] for a in names])
    output.table("sizes", ["", ""], _size_rows(facts))
    if report is not None:
        by = "" if report.backend is None else f", measured with the {report.backend} backend"
        report_output.scores(f"metrics on held-out data{by}", report)
        report_output.advice(facts["advice"], report)
    _print_notes(facts)


def _pairs_apart(facts: dict[str, Any]) -> str:
    """A note on switches whose tasks fit, but not together; empty if there are none."""
    alone = set(facts["tasks_that_do_not_fit"])
    apart = [f"{a} → {b}" for a, b in facts["pairs_that_do_not_fit"] if not alone & {a, b}]
    if not apart:
        return ""
    named = ", ".join(apart[:_MOST_PAIRS]) + (", …; --json lists all" if len(apart) > _MOST_PAIRS else "")
    why = "the two don't fit together, and the old task is given up before the new one is whole"
    return f"note: at {len(apart)} of {len(facts['switches'])} switches {why} ({named})."


def _size_rows(facts: dict[str, Any]) -> list[list[object]]:
    pages = f"{facts['pages']} pages of {output.size(facts['page_bytes'])}, {facts['page_fill']:.1%} full"
    expanded = facts["expanded_tables_bytes"]
    tables = facts["block_tables_bytes"] + expanded
    share = tables / max(1, *(task["kept_bytes"] for task in facts["tasks"]))
    return [
        ["paged weights, dense", output.size(facts["dense_paged_bytes"])],
        [f"paged weights, stored ({pages})", output.size(facts["stored_paged_bytes"])],
        ["resident parameters", output.size(facts["resident_bytes"])],
        ["private parameters, all tasks", output.size(facts["private_bytes"])],
        ["block tables, all tasks", output.size(facts["block_tables_bytes"])],
        [f"block tables, expanded for a task in use (both {share:.1%} of its blocks)", output.size(expanded)],
        ["page index and page table", output.size(facts["tables_bytes"] - tables)],
        *_table_rows(facts),
        ["smallest budget for every task", output.enough(facts["smallest_budget"])],
        ["budget that holds everything", output.enough(facts["largest_budget"])],
    ]


def _table_rows(facts: dict[str, Any]) -> list[list[object]]:
    found: list[list[object]] = [
        [f"rows on demand: {each['name']}, {each['rows']} rows", output.size(each["memory_bytes"])]
        for each in facts["rows"]
    ]
    least: list[list[object]] = [["rows that are always in memory", output.size(facts["least_row_bytes"])]]
    return [*found, *(least if found else [])]


def _print_notes(facts: dict[str, Any]) -> None:
    if not facts["direct_io"]:
        output.say("note: this file system refuses direct I/O; reads go through the page cache.")
    for task in facts["tasks_that_do_not_fit"]:
        output.say(f"note: {task} does not fit into the budget.")
    if apart := _pairs_apart(facts):
        output.say(apart)
    output.say(f"paged: {facts['parameters'].words}")
    if facts["experts"] is not None:
        output.say(f"experts: {facts['experts'].words}")
    for table in facts["rows"]:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in table["hits"].items())
        output.say(f"rows on demand: of training texts' look-ups in {table['name']}, its most used rows serve {shares}")
    if facts["graphs"]:
        output.say(f"graph: {', '.join(facts['graphs'])}")
    for kind, reason in facts["without_graph"].items():
        output.say(f"no graph: {kind}: {reason}")
    if facts["not_paged"]:
        names = list(facts["not_paged"])
        output.say(f"not paged: {len(names)} tensors ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})")
    whole = {table["name"]: table for table in facts["tied_tables"]}
    for name in {**facts["tied"], **whole}:
        table, all_names = whole.get(name), " = ".join([name, *facts["tied"].get(name, [])])
        output.say(f"tied: {all_names}, stored once{'' if table is None else _whole(table)}")


def _whole(table: dict[str, Any]) -> str:
    size = output.size(table["memory_bytes"])
    return f", whole in memory as {table['dtype']}: {size}; 'weightpager trim' makes it smaller for narrow tasks"
