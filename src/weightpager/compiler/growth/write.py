"""Writes a larger bundle by its plan."""

from __future__ import annotations

from weightpager.bundle import BundleWriter, TaskKind
from weightpager.bundle.format.names import private_file
from weightpager.bundle.task_subset import TaskSubset
from weightpager.compiler.graph.write import write_graphs
from weightpager.compiler.growth.plan import GrowthPlan
from weightpager.compiler.packing.write import image_shape, write_pages
from weightpager.compiler.recovery.low_rank import write_adapters


def write_growth(writer: BundleWriter, plan: GrowthPlan) -> dict[TaskKind, str]:
    """Link the base's pages and write all other files, the manifest last.

    Returns:
        The kinds of tasks that have no graph, and why.
    """
    bundle, tasks = plan.base.bundle, plan.added.tasks
    for name in bundle.manifest.page_file_names():
        writer.link(name, bundle.path / name)
    ids = write_pages(writer, plan.added, first=len(bundle.manifest.page_files))
    TaskSubset(bundle, tuple(bundle.tasks)).carry_over(writer, plan.base.added(plan.source))
    for task in tasks:
        writer.put(private_file(task.name), plan.form.content(plan.private[task.name]))
    writer.put_placement(plan.placement())
    write_adapters(writer, plan.added.weights, tasks)
    writer.put_index(plan.index(ids))
    manifest = plan.manifest()
    kinds = [task.kind for task in manifest.tasks]
    without_graph = write_graphs(writer, plan.source.config, kinds, image_shape(plan.source))
    writer.finish(manifest)
    return without_graph
