"""The rows of the demo's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import MASK, ControlScore, read_report
from weightpager_lab.demo.page import render
from weightpager_lab.demo.result import OURS, RESIDENT, ROW_FAULTS, DemoResult, DemoSwitch
from weightpager_lab.demo.table import row_bytes, rows


def test_a_dense_model_is_compared_as_a_bundle_too(wordy_bundle: Path) -> None:
    bundle = Bundle.open(wordy_bundle)
    dense, mask = (
        ControlScore(name=name, resident_bytes=size, scores=dict.fromkeys(bundle.tasks, 0.5))
        for name, size in ((bundle.manifest.dtype, 4000), (MASK, 1000))
    )
    report = read_report(bundle).model_copy(update={"controls": (dense, mask)})
    switch = DemoSwitch(
        from_task="a", to_task="b", bytes=1, ms=1, gbps=1, whole_sparse_bytes=1, whole_sparse_ms=1,
        own_checkpoint_bytes=1, own_checkpoint_ms=1, dense_ms=1,
    )  # fmt: skip
    found = {row.name: row for row in rows(bundle, report, [switch], {"half of the blocks": bundle})}
    name = f"dense in {bundle.manifest.dtype}"
    assert row_bytes(bundle) is not None
    as_bundle, whole = found[f"{name}, a bundle of all blocks"], found[name]
    assert as_bundle.paged_bytes == whole.paged_bytes == 4000
    assert as_bundle.bytes < whole.bytes
    shared = found[f"one shared mask in {bundle.manifest.dtype}"]
    assert as_bundle.bytes - as_bundle.paged_bytes == shared.bytes - shared.paged_bytes
    assert found[OURS].bytes - found[OURS].paged_bytes > shared.bytes - shared.paged_bytes  # ours has block tables
    other = found["weightpager, half of the blocks"]
    assert (other.bytes, other.paged_bytes) == (found[OURS].bytes, found[OURS].paged_bytes)
    assert other.mean_metric == found[OURS].mean_metric
    shown = {row.name for row in found.values() if row.row_faults({ROW_FAULTS: 0.4}) is not None}
    assert shown == {OURS, RESIDENT, other.name, as_bundle.name, shared.name}


def test_the_page_shows_row_faults_beside_switch_times() -> None:
    found: dict[str, Any] = json.loads((Path(__file__).parents[3] / "docs/demo.json").read_text(encoding="utf-8"))
    for switch in found["switches"]:
        switch["from_task"], switch["to_task"] = switch.pop("from"), switch.pop("to")
    result = DemoResult.model_validate_json(json.dumps(found))
    page = render(result)
    head, ours = page.split("<th>in memory</th>")[1].split("</tr>")[:2]
    assert head.endswith("<th>row faults, ms a text</th>")
    assert ours.endswith(f"<td>{result.figures[ROW_FAULTS]:.2g}</td>")
