"""``weightpager inspect``, and what a compile's report says on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.bundle import Bundle
from weightpager.bundle.report.advice import Advice, Way, few_items, heavy_losses
from weightpager.bundle.report.compile_report import DENSE, CompileReport, has_report, read_report
from weightpager.cli import output
from weightpager.cli.commands.bundle_facts import BundleFacts, MemoryFacts, ModelFacts, PictureFacts, SwitchFacts
from weightpager.cli.commands.several_bundles import inspect_several
from weightpager.cli.options import Budget, BundlePaths, Json, Storage
from weightpager.cli.output import ends, enough, explain, measured, say, size, table
from weightpager.config import format_room, parse_bandwidth, stated_size
from weightpager.errors import shown
from weightpager.store.read_plan import SMALL_SWITCH_BYTES

_NOT_COMPARED = {
    "none": "not compared with anything simpler: controls skipped (compare: none)",
    "few": "not compared with anything simpler: controls skipped, which so few held-out items could tell nothing of "
    "(--compare dense measures them all the same)",
}


def scores(title: str, report: CompileReport) -> None:
    """Print the tasks' metrics, with the intervals that hold the true value in 95 of 100 cases."""
    if not report.tasks and not report.added:
        say("not measured: no task has held-out data")
        return
    equal = next((control for control in report.controls if control.name == DENSE), None)
    longer = [] if equal is None else ["dense, trained longer (chosen on validation data)"]
    rows = []
    for task in (*report.tasks, *report.added):
        trained = [] if equal is None else [measured(equal.scores.get(task.name), equal.intervals.get(task.name))]
        dense, sparse = measured(task.dense, task.dense_interval), measured(task.sparse, task.sparse_interval)
        rows.append([task.name, task.metric, dense, *trained, sparse, f"{task.density:.2f}", task.items])
    table(title, ["task", "metric", "dense", *longer, "sparse", "density", "held-out items"], rows)
    if any(task.sparse_interval is not None for task in report.tasks):
        explain("brackets")


def budget(report: CompileReport) -> None:
    """Print what was made of a stated budget, and what was tried."""
    fit = report.fit
    if fit is None:
        return
    more = "" if fit.whole is None else f" With --fit {enough(fit.whole).replace(' ', '')} none is dropped."
    say(f"fit: {fit.why}. With its largest task it takes {enough(fit.bytes)}.{more}")
    if fit.bytes > fit.budget:
        say(f"note: that is more than {format_room(fit.budget)}, by what recovery changed; compile with a little less")
    if fit.trials:
        table(
            f"What was tried; {fit.taken} did best: loss on validation data, mean of the tasks",
            ["candidate", "memory", "of the blocks", "dtype", "trained shortly", "trained wholly"],
            [
                [
                    trial.name,
                    format_room(trial.budget),
                    f"{trial.density:.0%}",
                    trial.dtype,
                    f"{trial.short_loss:.3f}",
                    "" if trial.loss is None else f"{trial.loss:.3f}",
                ]
                for trial in fit.trials
            ],
        )


def advice(found: Advice | None, report: CompileReport) -> None:
    """Print the ways to serve the tasks by memory, and what to use in words; or that it was not to be compared."""
    if found is None:
        compared = _NOT_COMPARED.get(report.compare or "") if report.tasks else None
        for line in (compared, heavy_losses(report), few_items(report)):
            if line:
                say(line)
        return
    rows = [
        [
            choice.name,
            size(choice.resident_bytes),
            "other tools" if choice.budget is None else enough(choice.budget),
            size(choice.switch_bytes),
            _interval(f"{choice.loss:.1f}", choice),
        ]
        for choice in found.choices
    ]
    table(
        "what else could do the job", ["", "paged weights", "needs --budget", "per switch", "loss against dense"], rows
    )
    say(found.words)


def _interval(loss: str, choice: Way) -> str:
    return loss if choice.interval is None else f"{loss} ({ends(choice.interval, 1)})"


_Pair = tuple[str | None, str]

_MOST_PAIRS = 4
_MOST_TENSORS = 4


def inspect(bundles: BundlePaths, budget: Budget = None, storage: Storage = "1GB/s", json: Json = False) -> None:
    """Show what is in a bundle: tasks, dropped layers, sizes, page fill, overlap, bytes to load for every ordered pair.

    Of several bundles: what each takes of the budget that they share, and what budgets hold.

    Example: `weightpager inspect assistant.bundle --budget 4MiB`
    """
    if len(bundles) > 1:
        inspect_several(bundles, stated_size(budget, "budget"), json=json)
        return
    opened = Bundle.open(bundles[0])
    report = read_report(opened) if has_report(opened) else None
    facts = BundleFacts.of(opened, report, stated_size(budget, "budget"), parse_bandwidth(storage))
    if json:
        output.print_json(facts.plain())
        return
    _print_tasks(facts)
    _print_switches(facts)
    output.table("sizes", ["", ""], _size_rows(facts))
    if report is not None:
        _print_report(facts, report)
    _print_notes(facts)


def _print_tasks(facts: BundleFacts) -> None:
    rows = [
        [
            task.name,
            task.kind,
            f"{task.density:.2f}",
            output.size(task.kept_bytes),
            task.pages,
            f"{task.over_read:.1%}",
            output.size(task.private_bytes),
        ]
        for task in facts.tasks
    ]
    output.table(
        f"{facts.pages.bundle}: blocks {facts.pages.block} {facts.pages.dtype}",
        ["task", "kind", "density", "kept", "pages", "over-read", "private"],
        rows,
    )
    output.explain("over-read", "private")
    for task in facts.tasks:
        if task.dropped.words:
            output.say(f"dropped whole: {task.name}: {task.dropped.words}")
    for task in facts.tasks:
        if task.system is not None:
            output.say(f"conversations of {task.name} begin with {shown(task.system)}")


def _print_switches(facts: BundleFacts) -> None:
    names, switches = facts.task_names, facts.switches
    output.matrix(
        f"overlap (mean {switches.mean_overlap:.3f}): share of the next task's bytes that the last one keeps too",
        names,
        [[f"{cell:.2f}" for cell in row] for row in switches.overlap],
    )
    load = {(switch.from_task, switch.to_task): output.size(switch.bytes) for switch in switches.switches}
    output.matrix("bytes to load", names, [[load.get((a, b), "·") for b in names] for a in names])


def _size_rows(facts: BundleFacts) -> list[list[object]]:
    held, memory = facts.pages, facts.memory
    pages = f"{held.pages} pages of {output.size(held.page_bytes)}, {held.page_fill:.1%} full"
    tables = memory.block_tables_bytes + memory.expanded_tables_bytes
    share = tables / max(1, *(task.kept_bytes for task in facts.tasks))
    expanded = f"block tables, expanded for a task in use (both {share:.1%} of its blocks)"
    return [
        ["paged weights, dense", output.size(held.dense_paged_bytes)],
        [f"paged weights, stored ({pages})", output.size(held.stored_paged_bytes)],
        ["resident parameters", output.size(memory.resident_bytes)],
        ["private parameters, all tasks", output.size(memory.private_bytes)],
        ["block tables, all tasks", output.size(memory.block_tables_bytes)],
        [expanded, output.size(memory.expanded_tables_bytes)],
        ["page index and page table", output.size(memory.tables_bytes - tables)],
        *_row_table_rows(memory),
        *([] if facts.pictures is None else _picture_rows(facts.pictures)),
        ["smallest budget for every task", output.enough(memory.smallest_budget)],
        ["budget that holds all pages: switches read nothing", output.enough(memory.all_pages_budget)],
        ["budget that holds everything", output.enough(memory.largest_budget)],
    ]


def _row_table_rows(memory: MemoryFacts) -> list[list[object]]:
    if not memory.rows:
        return []
    tables: list[list[object]] = [
        [f"rows on demand: {table.name}, {table.rows} rows", output.size(table.memory_bytes)] for table in memory.rows
    ]
    return [*tables, ["rows that are always in memory", output.size(memory.least_row_bytes)]]


def _picture_rows(pictures: PictureFacts) -> list[list[object]]:
    whose = "the same for all tasks" if pictures.blocks == "shared" else "each task's own"
    return [
        [
            f"of the pages, those of the picture tower ({pictures.layers} layers, {whose})",
            output.size(pictures.stored_bytes),
        ],
        [
            f"features of a picture ({pictures.picture_tokens} tokens), kept for further questions",
            output.size(pictures.kept_bytes),
        ],
    ]


def _print_report(facts: BundleFacts, report: CompileReport) -> None:
    by = "" if report.backend is None else f", measured with the {report.backend} backend"
    scores(f"metrics on held-out data{by}", report)
    budget(report)
    advice(facts.advice, report)


def _print_notes(facts: BundleFacts) -> None:
    if not facts.direct_io:
        output.say("note: this file system refuses direct I/O; reads go through the page cache.")
    _print_what_does_not_fit(facts.switches)
    if begun := [task.name for task in facts.tasks if task.add_bos_token]:
        output.say(f"prompts of {', '.join(begun)} begin with what the tokenizer puts in front of a text")
    output.say(f"paged: {facts.model.parameters.words}")
    if facts.model.experts is not None:
        output.say(f"experts: {facts.model.experts.words}")
    for rows in facts.memory.rows:
        shares = ", ".join(f"{part} {share:.0%}" for part, share in rows.hits.items())
        output.say(f"rows on demand: of training texts' look-ups in {rows.name}, its most used rows serve {shares}")
    if facts.model.graphs:
        output.say(f"graph: {', '.join(facts.model.graphs)}")
    for kind, reason in facts.model.without_graph.items():
        output.say(f"no graph: {kind}: {reason}")
    if names := list(facts.model.not_paged):
        named = ", ".join(names[:_MOST_TENSORS]) + (", …" if len(names) > _MOST_TENSORS else "")
        output.say(f"not paged: {len(names)} tensors ({named})")
    for name, others in facts.model.tied.items():
        output.say(f"tied: {' = '.join([name, *others])}, stored once")
    _print_whole(facts.model)


def _print_what_does_not_fit(switches: SwitchFacts) -> None:
    for task in switches.tasks_that_do_not_fit:
        output.say(f"note: {task} does not fit into the budget.")
    alone = set(switches.tasks_that_do_not_fit)
    apart = [(a, b) for a, b in switches.pairs_that_do_not_fit if not alone & {a, b}]
    if apart:
        sizes = {(switch.from_task, switch.to_task): switch.bytes for switch in switches.switches}
        early = [pair for pair in apart if sizes[pair] > SMALL_SWITCH_BYTES]
        counted = f"at {len(apart)} of {len(switches.switches)} switches the two don't fit together"
        output.say(f"note: {counted} ({_pairs(apart)}); {_what_a_failing_read_leaves(apart, early)}.")


def _what_a_failing_read_leaves(apart: Sequence[_Pair], early: Sequence[_Pair]) -> str:
    """What becomes of the old task at switches of two that don't fit together; ``early`` are those of many pages."""
    small = output.size(SMALL_SWITCH_BYTES)
    if not early:
        return f"each reads {small} at most, which on a CPU is read and checked before the old task is given up"
    which = "" if len(early) == len(apart) else f"at {len(early)} of them, which read more than {small}, "
    named = f" ({_pairs(early)})" if which else ""
    return f"{which}the old task is given up before the new one is whole: a failing read leaves no task active{named}"


def _pairs(pairs: Sequence[_Pair]) -> str:
    more = ", …; --json lists all" if len(pairs) > _MOST_PAIRS else ""
    return ", ".join(f"{a} → {b}" for a, b in pairs[:_MOST_PAIRS]) + more


def _print_whole(model: ModelFacts) -> None:
    for weight in model.whole_weights:
        name, size = weight.entry.name, output.size(weight.memory_bytes)
        of_words = name in model.tied or model.not_paged.get(name) == "head"
        trim = "; 'weightpager trim' makes it smaller for narrow tasks" if of_words else ""
        output.say(f"whole in memory as {weight.entry.dtype}: {name}, {size}{trim}")
