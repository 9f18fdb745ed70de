"""Bringing a bundle up to what is written today: its graphs, and the version of its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightpager.backends.torch.model.architecture import image_reader, read_config
from weightpager.bundle import Bundle, BundleWriter, TaskKind, writing
from weightpager.bundle.task_subset import TaskSubset
from weightpager.compiler.graph.write import write_graphs
from weightpager.errors import BundleFormatError
from weightpager.graph.file import graph_file, kind_of_file


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade found.

    Attributes:
        graphs: kinds of tasks that have a graph now.
        without_graph: kinds that have none, and why.
    """

    graphs: tuple[TaskKind, ...]
    without_graph: dict[TaskKind, str]


def upgrade(path: str | Path, out: str | Path, *, force: bool = False) -> Upgraded:
    """Write a bundle again with graphs of its kinds of tasks. Pages and parameters stay, and so do outputs.

    Args:
        path: bundle directory.
        out: bundle directory to create, which may be ``path`` itself with ``force``.
        force: replace an existing bundle.

    Raises:
        BundleError: the bundle can't be used, or was replaced meanwhile.
        ConfigError: ``out`` may not be written.
        CompileError: the storage refused a write, or another command is writing there at this moment.
    """
    bundle = Bundle.open(path)
    subset = TaskSubset(bundle, tuple(bundle.tasks))
    with writing(out, force=force, origin=bundle) as writer:
        reasons = _write(writer, subset)
    return Upgraded(Bundle.open(out).graph_kinds, reasons)


def _write(writer: BundleWriter, subset: TaskSubset) -> dict[TaskKind, str]:
    bundle = subset.bundle
    for name in bundle.manifest.page_file_names():
        writer.link(name, bundle.path / name)
    writer.put_index(bundle.index)
    writer.put_placement(bundle.placement)
    subset.carry_over(writer)
    for name in bundle.manifest.files:  # today's compiler may say more than the one that wrote them
        if kind_of_file(name) is not None:
            (writer.root / name).unlink(missing_ok=True)
    kinds = [task.kind for task in bundle.manifest.tasks]
    image = image_reader(bundle).shape if bundle.takes_images else None
    old = {kind: bundle.path / graph_file(kind) for kind in kinds if _has_graph(bundle, kind)}
    reasons = write_graphs(writer, read_config(bundle), kinds, image, old)
    manifest = subset.manifest(page_bytes=bundle.page_bytes, page_files=bundle.manifest.page_files)
    subset.finish(writer, manifest, reasons)
    return reasons


def _has_graph(bundle: Bundle, kind: TaskKind) -> bool:
    """Whether a bundle has a graph of this kind that can be read."""
    try:
        return bundle.graph(kind) is not None
    except BundleFormatError:
        return False
