import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.store import ReadRun, coalesce, group_runs, most_pages, read_count, read_plan

pages = st.sets(st.integers(0, 200)).map(sorted)


def test_neighbours_are_one_read() -> None:
    assert coalesce([2, 3, 4, 7, 9, 10], lambda _: 100, 4096) == [ReadRun(2, 3), ReadRun(7, 1), ReadRun(9, 2)]


def test_a_read_ends_where_its_file_does() -> None:
    assert coalesce([0, 1, 2, 3], lambda page: 2 - page if page < 2 else 100, 4096) == [ReadRun(0, 2), ReadRun(2, 2)]


@given(pages, st.integers(1, 8), st.sampled_from([4096, 1 << 19, 1 << 20, 1 << 21]))
def test_runs_cover_each_page_once_in_order(wanted: list[int], span: int, page_bytes: int) -> None:
    runs = coalesce(wanted, lambda _: span, page_bytes)
    assert [page for run in runs for page in range(run.first, run.first + run.count)] == wanted
    assert all(run.count <= span for run in runs)
    in_one_file = coalesce(wanted, lambda _: 1000, page_bytes)
    assert read_count(np.array(wanted, np.int64), page_bytes) == len(in_one_file)
    assert all(run.count == 1 or run.count * page_bytes <= 1 << 20 for run in runs)


def test_short_reads_are_grouped_and_long_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_plan, "GROUP_BYTES", 4 * 4096)
    runs = [ReadRun(0, 1), ReadRun(2, 3), ReadRun(6, 1), ReadRun(8, 9), ReadRun(20, 4), ReadRun(30, 1)]
    assert group_runs(runs, 4096) == [runs[:2], runs[2:4], runs[4:5], runs[5:]]


@given(pages, st.sampled_from([4096, 1 << 19, 1 << 20, 1 << 21]), st.sampled_from([1, 1 << 14, 1 << 16]))
def test_groups_keep_every_run_in_order(wanted: list[int], page_bytes: int, least: int) -> None:
    runs = coalesce(wanted, lambda _: 1000, page_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_plan, "GROUP_BYTES", least)
        groups = group_runs(runs, page_bytes)
    assert [run for some in groups for run in some] == runs
    sizes = [sum(run.count for run in some) for some in groups]
    assert all(0 < size <= most_pages(page_bytes) for size in sizes)
    for size, behind in zip(sizes, groups[1:], strict=False):
        assert size * page_bytes >= least or size + behind[0].count > most_pages(page_bytes)
