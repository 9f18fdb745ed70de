import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightpager.store import Run, coalesce, read_count

pages = st.sets(st.integers(0, 200)).map(sorted)


def test_neighbours_are_one_read() -> None:
    assert coalesce([2, 3, 4, 7, 9, 10], lambda _: 100, 4096) == [Run(2, 3), Run(7, 1), Run(9, 2)]


def test_a_read_ends_where_its_file_does() -> None:
    assert coalesce([0, 1, 2, 3], lambda page: 2 - page if page < 2 else 100, 4096) == [Run(0, 2), Run(2, 2)]


@given(pages, st.integers(1, 8), st.sampled_from([4096, 1 << 19, 1 << 20, 1 << 21]))
def test_runs_cover_each_page_once_in_order(wanted: list[int], span: int, page_bytes: int) -> None:
    runs = coalesce(wanted, lambda _: span, page_bytes)
    assert [page for run in runs for page in range(run.first, run.first + run.count)] == wanted
    assert all(run.count <= span for run in runs)
    in_one_file = coalesce(wanted, lambda _: 1000, page_bytes)
    assert read_count(np.array(wanted, np.int64), page_bytes) == len(in_one_file)
    assert all(run.count == 1 or run.count * page_bytes <= 1 << 20 for run in runs)
