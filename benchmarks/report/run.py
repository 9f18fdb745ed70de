"""The page ``docs/results.md`` and its plots, from ``docs/results.json`` and the other benchmarks' rows beside it.

python -m benchmarks.report --json docs/results.json --out docs/results.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from jinja2 import Environment, StrictUndefined

from benchmarks import published, row_file
from benchmarks.accuracy.page import simpler_does
from benchmarks.accuracy.rows import find, gather
from benchmarks.accuracy.rows import read as read_accuracy
from benchmarks.device.measured import read as read_device
from benchmarks.prefetch.rows import Row as PrefetchRow
from benchmarks.prefetch.rows import read as read_prefetch
from benchmarks.prefetch.rows import shares, speedups
from benchmarks.report import demo, device, plots, results_file, tables, winners
from benchmarks.report.reasons import reasons
from benchmarks.report.results_file import Results
from weightpager.config import format_size
from weightpager_lab.contest.figures import NEVER_LOAD
from weightpager_lab.contest.result import Contest

HERE = Path(__file__).parent
DOMAINS = ("text assistant", "language model", "driving")
"""What the benchmark is asked to cover; a contest's name begins with its domain's."""

NOTES = {
    "driving": " **All scenes are rendered, and a LLaVA of DINOv2-S and SmolLM2-135M was trained here to answer seven "
    "questions about them**: accuracies show what sparsity costs, and nothing about real roads. All tasks share the "
    "picture tower. A prompt is a held-out picture with its question, another one at each switch: every first output "
    "computes the picture's features anew. Whole checkpoints have tower, connector and tables, as people ship them. "
    "Transitions are those of the drive trace. Earlier versions timed a ViT of 2.7 million parameters, for five of the "
    "questions on 64 × 64 pixels; on held-out scenes it had 0.92, 0.75, 0.98, 0.66 and 0.86, a mean of 0.834."
}
"""What has to be said of a domain wherever it is shown."""


def main(
    json: Annotated[Path, typer.Option(help="Results that `python -m benchmarks.results` wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write; its plots are put beside it.")],
) -> None:
    """Write the page and its plots."""
    if not json.is_file():
        raise typer.BadParameter(f"expected a file of results, found nothing at {json}", param_hint="--json")
    results = results_file.read(json)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, text in drawn(results, out).items():
        (out.parent / name).write_text(text, encoding="utf-8")
    out.write_text(render(results, json, out), encoding="utf-8")


def render(results: Results, json: Path, out: Path) -> str:
    """The page's text.

    Args:
        results: all that was measured.
        json: the file that they lie in; other benchmarks' rows are looked for beside it.
        out: where the page will lie; its plots are named after it.
    """
    environment = Environment(  # Markdown, not HTML: nothing to escape
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((HERE / "report.md.j2").read_text(encoding="utf-8"))
    contests = results.contests
    ahead = read_prefetch(json.with_name("prefetch.json"))
    on_device = read_device(json.with_name("device.json"))
    listed = row_file.read(json.with_name("published.json"), published.Row)
    shown = demo.read(json.with_name("demo.json")) if json.with_name("demo.json").is_file() else None
    return template.render(
        json_name=json.name,
        demo=None if shown is None else demo.demo_table(list(shown.rows.values()), shown.figures),
        winners=winners.winners(contests),
        headlines=winners.headlines(contests),
        simpler=simpler_does(gather(read_accuracy(json.with_name("accuracy.json")))),
        accuracy=tables.accuracy_beside(contests),
        goals=tables.goals(contests),
        other_goals=tables.other_goals(results.compiling, {**speedups(ahead), **shares(ahead)}),
        reasons=reasons(contests),
        published=tables.published(contests),
        published_lists=published.page(listed),
        published_sources=tables.sources(listed),
        contests=[_described(name, contest, out) for name, contest in contests.items()],
        without_all_blocks=[name for name, c in contests.items() if c.row(NEVER_LOAD["all_blocks"]) is None],
        one_prompt=any(row.found.prompts == "one" for c in contests.values() for row in c.rows if row.found),
        slow=tables.slow_at_bf16(contests),
        bookkeeping=tables.bookkeeping(contests),
        alignment=alignment(json.with_name("accuracy.json")),
        accuracy_plots=[path.name for path in sorted(json.parent.glob("accuracy-*.svg"))],
        gaps=_gaps(contests),
        domains=_domains(contests),
        prefetch=prefetch(ahead),
        prefetch_sources=tables.sources([row for row in ahead if row.mode == "real"]),
        processes=device.processes(on_device),
        process_commands=device.commands(on_device),
        compile_cost=tables.compile_cost(contests, results.compiling),
        compiling=results.compiling,
        compile_peak=tables.compile_peak(results.compiling),
        compile_sources=tables.sources([] if results.compiling is None else [results.compiling]),
        granularity=tables.granularity(results.granularity) if results.granularity else "",
        granularity_tasks=tables.of_tasks(results.granularity),
        granularity_sources=tables.sources(results.granularity),
        doubts=tables.doubts(results.granularity),
        scaling=tables.scaling(results.scaling) if results.scaling else "",
        scaling_sources=tables.sources(results.scaling),
        scaling_plot=f"{out.stem}-scaling.svg",
    )


def drawn(results: Results, out: Path) -> dict[str, str]:
    """All plots by file name."""
    found = {f"{out.stem}-scaling.svg": plots.scaling(results.scaling)} if results.scaling else {}
    for name, contest in results.contests.items():
        if contest.row("ours") is not None:
            names = _plot_names(name, out)
            found[names["matrix"]] = plots.switch_matrix(contest)
            found[names["latency"]] = plots.latencies(contest)
            found[names["memory"]] = plots.memory_over_trace(contest)
    return found


def alignment(file: Path) -> str:
    """Overlap won per accuracy lost, from the accuracy benchmark's rows; a sentence where they are missing."""
    points = gather(read_accuracy(file))
    lines = []
    for domain, fraction in sorted({(point.domain, point.fraction) for point in points}):
        ours, own = (find(points, domain, fraction, method, "finetune") for method in ("ours", "unaligned"))
        if ours is None or own is None:
            continue
        sign = -1 if domain == "B" else 1  # perplexity is better where it is lower
        lines.append([
            domain,
            f"{fraction:g}",
            f"{own.overlap:.3f} → {ours.overlap:.3f}",
            f"{own.value():.4f} → {ours.value():.4f}",
            f"{sign * (ours.value() - own.value()):+.4f}",
            f"{format_size(own.bytes_per_switch)} → {format_size(ours.bytes_per_switch)}",
        ])  # fmt: skip
    header = ["domain", "a", "overlap, unaligned → aligned", "metric", "better by", "loaded per switch"]
    return tables.table(header, lines) if lines else "Not measured: no point has both."


def prefetch(rows: Sequence[PrefetchRow]) -> str:
    """Real runs of the prefetch benchmark; empty where it hasn't been run."""
    lines = [
        [
            row.trace, f"{row.f:g}", row.policy, str(row.switches), f"{row.wait_ms_mean:.4g} ms",
            f"{row.wait_ms_p99:.4g} ms", f"{row.hit_rate:.0%}" if row.hit_rate else "–",
        ]
        for row in rows
        if row.mode == "real"
    ]  # fmt: skip
    header = ["trace", "f", "policy", "switches", "a switch waits", "99th percentile", "there already"]
    return tables.table(header, lines) if lines else ""


def _described(name: str, contest: Contest, out: Path) -> dict[str, Any]:
    machine = contest.machine
    versions = ", ".join(f"{package} {version}" for package, version in machine.get("versions", {}).items())
    return {
        "title": tables.title(name),
        "about": _about(contest) + next((note for domain, note in NOTES.items() if name.startswith(domain)), ""),
        "command": contest.command,
        "machine": f"{machine.get('cpu')}, {machine.get('usable_cores')} cores; {versions}; commit "
        f"{machine.get('commit')}, seed {contest.seed}; load average before the run: {contest.load:.1f}.",
        "methods": tables.methods(contest),
        "starred": any(row.unlimited for row in contest.rows),
        "not_measured": tables.not_measured(contest),
        "plots": _plot_names(name, out) if contest.row("ours") is not None else None,
    }


def _about(contest: Contest) -> str:
    facts, limits = contest.facts, contest.limits
    weights = f"a {facts.model} of random weights, for speed and memory only"
    memory = "as much as the machine has" if limits.memory is None else format_size(limits.memory)
    storage = "as the disk is" if limits.storage is None else f"{limits.storage / 1e6:.0f} MB/s"
    cpus = "all" if limits.cpus is None else str(limits.cpus)
    repeats = "once" if contest.repeats == 1 else f"{contest.repeats} times"
    return (
        f"{weights if facts.random_weights else facts.model}; {len(facts.tasks)} tasks at {facts.sparsity:.0%} "
        f"sparsity that overlap by {facts.mean_overlap:.3f}; blocks {facts.block} in {facts.dtype}, pages of "
        f"{format_size(facts.page_bytes)}, {facts.page_fill:.1%} full. Memory: {memory}; storage: {storage}; "
        f"CPUs: {cpus}. Every ordered pair {repeats}, or as often as time allowed."
    )


def _plot_names(name: str, out: Path) -> dict[str, str]:
    plain = name.replace(" ", "-").replace(",", "")
    return {plot: f"{out.stem}-{plain}-{plot}.svg" for plot in ("matrix", "latency", "memory")}


def _gaps(contests: Mapping[str, Contest]) -> str:
    found = [
        f"{name} {contest.alignment_gap:.2e}" for name, contest in contests.items() if contest.alignment_gap is not None
    ]
    return "; ".join(found) or "none, no contest's bundle was aligned by a compile"


def _domains(contests: Mapping[str, Contest]) -> str:
    lines = []
    for domain in DOMAINS:
        own = [contest for name, contest in contests.items() if name.startswith(domain)]
        for contest in own:
            row = contest.row("ours")
            waited = None if row is None else row.mean_waited
            cell = "not measured" if waited is None else f"{1e3 * waited:.1f} ms"
            lines.append([domain, str(len(contest.facts.tasks)), f"{contest.facts.mean_overlap:.3f}", cell])
        if not own:
            lines.append([domain, "–", "–", "not measured"])
    return tables.table(["domain", "tasks", "overlap", "a visit waits, without prefetch"], lines)
