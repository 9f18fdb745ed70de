"""``upgrade``: a bundle of an older version as today's writes it."""

from __future__ import annotations

from weightpager.cli import output
from weightpager.cli.options import BundlePath, Force, Json, Out, extra


def upgrade(
    bundle: BundlePath,
    out: Out,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a bundle of an older weightpager anew, with a graph for each kind of tasks, as today's has.

    Pages and parameters stay as they are, and so do outputs. Needs `weightpager[compile]`.

    Example: `weightpager upgrade assistant.bundle --out new.bundle`
    """
    with extra("compile"), output.loading_torch():
        from weightpager.compiler.upgrade import upgrade as upgrade_bundle

    done = upgrade_bundle(bundle, out, force=force)
    if json:
        output.print_json(done)
        return
    for kind in done.graphs:
        output.say(f"{kind}: graph written")
    for kind, reason in done.without_graph.items():
        output.say(f"{kind}: no graph: {reason}")
