"""Every method of the contest serves the tasks that it says it serves; nothing is timed here."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import weightpager as wp
from bare import python
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.kernels import isa
from weightpager.nn.linear import PagedLinear
from weightpager_lab.contest.figures import budget_for
from weightpager_lab.contest.measuring import bytes_from_storage, measure
from weightpager_lab.contest.prompt import prompt
from weightpager_lab.contest.result import Found, Job
from weightpager_lab.contest.rivals import assets
from weightpager_lab.contest.rivals.backbone import write_quantised
from weightpager_lab.contest.rivals.methods import METHODS, method
from weightpager_lab.contest.rivals.rival import Pace, Rival, Setting, slow_engines
from weightpager_lab.contest.rivals.torch_rival import TorchRival, tensors
from weightpager_lab.contest.worker import do
from weightpager_lab.limits.cgroup import pinned

NATIVE = ["ours", "ours_while_loading", "ours_unaligned", "ours_all_blocks", "ours_one_mask"]

SAME_ANSWERS = [
    "ours_on_torch", "ours_while_loading", "sparse_strict", "sparse_language", "sparse_whole", "sparse_copied",
    "sparse_lru",
]  # fmt: skip


def said(*_: Any) -> None:
    """No progress."""


def asked(bundle: Bundle, task: str) -> dict[str, Any]:
    """A task's prompt, in tensors."""
    return tensors(bundle.task(task), prompt(bundle, task, 1))


@pytest.fixture(
    scope="module",
    params=[
        "assistant_bundle",
        "writer_bundle",
        "driver_bundle",
        pytest.param("wordy_bundle", marks=pytest.mark.slow),
        pytest.param("camera_bundle", marks=pytest.mark.slow),
    ],
)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return Bundle.open(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    assets.write_sparse(bundle, list(bundle.tasks), path, said)
    write_quantised(bundle, path, "int8", said)
    write_quantised(bundle, path, "int4", said)
    assets.write_dense(bundle, list(bundle.tasks), path, said, distinct=True)
    return path


@contextmanager
def made(name: str, bundle: Bundle, folder: Path, room: float = 1.0) -> Iterator[Rival]:
    rival = method(name).make(Setting(bundle, tuple(bundle.tasks), folder, budget_for(bundle, room), 2))
    try:
        yield rival
    finally:
        rival.close()


def job_of(name: str, bundle: Bundle, folder: Path, **changes: int) -> Job:
    plain = Job(
        method=name,
        bundle=str(bundle.path),
        folder=str(folder),
        budget=budget_for(bundle, 1.0),
        threads=2,
        pace=1e12,
        seconds=0.0,
        repeats=1,
        visits=3,
        tasks=2,
        seed=0,
    )
    return plain.model_copy(update=changes)


@pytest.fixture(scope="module")
def answers(bundle: Bundle) -> dict[str, torch.Tensor]:
    """What an engine answers to each task's prompt."""
    with Engine.from_pretrained(bundle.path) as engine, torch.inference_mode():
        return {task: engine.activate(task)(**asked(bundle, task)).logits for task in bundle.tasks}


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Their checkpoints are in bfloat16, as people ship them; the bundle's parameters may be wider."""
    return float((found.float() - wanted.float()).norm() / (1 + wanted.float().norm()))


@pytest.mark.parametrize("name", SAME_ANSWERS)
def test_a_sparse_rival_gives_each_task_its_answers(
    name: str, bundle: Bundle, folder: Path, answers: dict[str, torch.Tensor]
) -> None:
    room = 2.0 if name == "sparse_lru" else 1.0
    with made(name, bundle, folder, room) as rival, torch.inference_mode():
        for task in [*bundle.tasks, *reversed(bundle.tasks)]:
            found = rival.switch(task)(**asked(bundle, task)).logits
            assert distance(found, answers[task]) < 0.05, task


@pytest.mark.parametrize("bundle", ["writer_bundle", "driver_bundle"], indirect=True)
def test_methods_write_the_same_tokens(bundle: Bundle, folder: Path) -> None:
    task, most = next(iter(bundle.tasks)), 6
    inputs = prompt(bundle, task, 1)
    with Engine.from_pretrained(bundle.path) as engine, torch.inference_mode():
        module = engine.activate(task)
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        wanted = module.generate(**given, do_sample=False, min_new_tokens=most, max_new_tokens=most)
    for name in ("ours", "ours_on_torch", "sparse_strict", "sparse_whole"):
        with made(name, bundle, folder) as rival:
            rival.switch(task)
            found = list(islice(rival.write(task, inputs), most))
            assert found == wanted[0, inputs["input_ids"].shape[1] :].tolist(), name


@pytest.mark.parametrize("name", ["dense_direct", "dense_copied", "dense_mapped", "offload"])
def test_a_dense_rival_has_the_first_tasks_weights(
    name: str, bundle: Bundle, folder: Path, answers: dict[str, torch.Tensor]
) -> None:
    if method(name).skipped:
        pytest.skip(method(name).skipped)
    task = next(iter(bundle.tasks))
    with made(name, bundle, folder) as rival, torch.inference_mode():
        for _ in range(2):
            found = rival.switch(task)(**asked(bundle, task)).logits
            assert distance(found, answers[task]) < 0.05
            rival.forget()


@pytest.mark.slow
def test_adapters_differ_and_share_one_backbone(bundle: Bundle, folder: Path) -> None:
    if method("shared_bf16").skipped:
        pytest.skip(method("shared_bf16").skipped)
    a, b = list(bundle.tasks)[:2]
    with made("shared_bf16", bundle, folder) as wide, torch.inference_mode():
        first = wide.switch(a)(**asked(bundle, a)).logits
        wide.switch(b)
        assert torch.equal(wide.switch(a)(**asked(bundle, a)).logits, first)
        assert wide.switch(a).base_model is wide.switch(b).base_model
        with made("shared_int8", bundle, folder) as narrow:
            assert narrow.paged_bytes() < wide.paged_bytes()
            assert torch.isfinite(narrow.switch(b)(**asked(bundle, b)).logits).all()


@pytest.mark.slow
@pytest.mark.parametrize("pages", ["int8", "float32"])
def test_what_rivals_hold_is_counted_in_their_own_precision(pages: str, tmp_path: Path) -> None:
    bundle = wp.compile(tiny.writer(tmp_path, dtype=pages), out=tmp_path / "writer.bundle")
    tasks = list(bundle.tasks)
    assets.write_dense(bundle, tasks, tmp_path, said, distinct=False)
    write_quantised(bundle, tmp_path, "int8", said)
    shapes = [(weight.out_features, weight.in_features) for weight in bundle.manifest.weights]
    wide, narrow = sum(2 * rows * cols for rows, cols in shapes), sum(rows * cols + 2 * rows for rows, cols in shapes)
    wanted = {"dense_direct": wide, "dense_copied": wide, "dense_mapped": wide, "dense_int8": narrow}
    if not method("shared_bf16").skipped:
        wanted |= {"shared_bf16": wide, "shared_int8": narrow}
    for name, size in wanted.items():
        with made(name, bundle, tmp_path) as rival:
            rival.switch(tasks[0])
            assert rival.paged_bytes() == size, name


@pytest.mark.parametrize("name", ["sparse_strict", "shared_mask"])
def test_a_sparse_rival_takes_its_tables_as_its_checkpoints_have_them(
    name: str, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_anew(*_: object) -> None:
        pytest.fail("tables were made anew, which takes more memory than they do")

    for module in ("parameters", "sparse_tasks"):
        monkeypatch.setattr(f"weightpager_lab.contest.rivals.{module}.resident", made_anew, raising=False)
    with made(name, bundle, folder) as rival, torch.inference_mode():
        task = next(iter(bundle.tasks))
        assert torch.isfinite(rival.switch(task)(**asked(bundle, task)).logits).all()


def tables_of(rival: Rival, tasks: list[str]) -> list[set[int]]:
    """Where the block tables of each task's module lie."""
    layers = [[part for part in rival.switch(task).modules() if isinstance(part, PagedLinear)] for task in tasks]
    return [{layer.paged_weight.locations.ctypes.data for layer in of_task} for of_task in layers]


def test_one_mask_for_all_tasks_has_one_copy_of_its_tables(bundle: Bundle, folder: Path) -> None:
    tasks = list(bundle.tasks)
    with made("shared_mask", bundle, folder) as shared, made("sparse_strict", bundle, folder) as own:
        first, *others = tables_of(shared, tasks)
        assert first
        assert all(other == first for other in others)
        assert not set.intersection(*tables_of(own, tasks))


def test_a_shared_tower_stays_while_the_language_model_is_switched(driver_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(driver_bundle)
    assets.write_sparse(bundle, list(bundle.tasks), tmp_path, said)
    towers, read = set(), {}
    for task in bundle.tasks:
        blocks, _ = assets.compact(bundle, task)
        pages = assets.tower_pages(bundle, task)
        assert 0 < pages < len(blocks)
        towers.add(blocks[:pages].numpy().tobytes())
        read[task] = len(blocks[pages:]) * bundle.page_bytes
    assert len(towers) == 1
    with made("sparse_language", bundle, tmp_path) as rival:
        for task in bundle.tasks:
            before = bytes_from_storage()
            rival.switch(task)
            assert bytes_from_storage() - before == read[task]


def test_only_tasks_with_a_shared_tower_have_a_language_model_by_itself(bundle: Bundle) -> None:
    left_out = [each.name for each in METHODS if not each.suits(bundle)]
    assert left_out == ([] if bundle.pictures else ["sparse_language"])


def test_an_lru_keeps_what_has_room(bundle: Bundle, folder: Path) -> None:
    a, b = list(bundle.tasks)[:2]
    with made("sparse_lru", bundle, folder, 2.0) as rival:
        rival.switch(a)
        one = rival.paged_bytes()
        rival.switch(b)
        assert rival.paged_bytes() > one
        rival.forget()
        assert rival.paged_bytes() <= one


def test_an_lru_has_as_much_room_as_we_have_however_large_its_own_tables_are(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager_lab.contest.rivals.sparse_tasks.fixed_bytes", lambda *_: 1 << 30)
    a, b = list(bundle.tasks)[:2]
    with made("sparse_lru", bundle, folder, 2.0) as rival:
        rival.switch(a)
        one = rival.paged_bytes()
        rival.switch(b)
        assert rival.paged_bytes() > one


@pytest.mark.slow
@pytest.mark.parametrize(  # what is asked differs in kind
    "bundle", ["writer_bundle", "camera_bundle", "driver_bundle"], indirect=True
)
@pytest.mark.parametrize("name", [entry.name for entry in METHODS])
def test_a_method_is_measured_whole(name: str, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager_lab.contest.measuring.FORWARD_SECONDS", 0.0)  # the fewest forwards
    if method(name).skipped:
        pytest.skip(method(name).skipped)
    job = job_of(name, bundle, folder)
    with pinned(1):  # tiny models gain nothing from threads
        found = do(job)
    assert len(found.samples) == 2
    assert all((sample.ready is None) == method(name).lazy for sample in found.samples)
    assert len(found.visits) == 3
    assert bool(found.written) == next(iter(bundle.tasks.values())).writes
    assert found.memory.resident >= found.memory.anonymous > 0
    assert found.calls.keys() == ({isa()} if name.startswith("ours") and found.backend == "torch" else set())
    if name == "shared_mask":
        assert sum(sample.bytes for sample in found.samples) == 0


@pytest.mark.slow
def test_our_process_needs_no_torch(assistant_bundle: Path, tmp_path: Path) -> None:
    """So that the memory of the whole process is that of a device."""
    bundle = Bundle.open(assistant_bundle)
    job, result = tmp_path / "job.json", tmp_path / "result.json"
    job.write_text(job_of("ours", bundle, tmp_path).model_dump_json())
    ran = python(f"from weightpager_lab.contest.worker import main; main({[str(job), str(result)]})")
    assert ran.returncode == 0, ran.stderr
    found = Found.model_validate_json(result.read_bytes())
    assert found.backend == "native"
    assert len(found.samples) == 2


class Recorded(TorchRival):
    """A rival that only notes which task was the current one when a cold walk began."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.current = self.left = ""

    def switch(self, task: str) -> Callable[..., None]:
        self.current = task
        return lambda **_inputs: None

    def write(self, _task: str, _inputs: object) -> Iterator[int]:
        return iter(range(9))

    def forget(self) -> None:
        self.left = self.current

    def files(self, _task: str) -> list[Path]:
        return [self.file]

    def weight_bytes(self) -> int:
        return 0

    paged_bytes = weight_bytes

    def close(self) -> None:
        """Nothing is open."""


def test_every_visit_of_a_trace_leads_to_another_task(bundle: Bundle, tmp_path: Path) -> None:
    rival, tasks = Recorded(tmp_path / "weights"), list(bundle.tasks)
    rival.file.write_bytes(b"weights")
    found = measure(rival, method("ours"), bundle, tasks, job_of("ours", bundle, tmp_path, repeats=0))
    walk = [rival.left, *(visit.task for visit in found.visits)]
    assert len(found.visits) == 3
    assert all(a != b for a, b in pairwise(walk))


def test_a_first_output_has_what_row_faults_took_of_it(wordy_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(wordy_bundle)
    job = job_of("ours", bundle, tmp_path, repeats=1, visits=0)
    with made("ours", bundle, tmp_path) as rival:
        found = measure(rival, method("ours"), bundle, list(bundle.tasks), job)
    faults = [sample.row_faults for sample in found.samples]
    assert all(one is not None and 0 <= one < of.first_output for one, of in zip(faults, found.samples, strict=True))
    assert any(faults)


def test_ours_is_not_measured_where_the_paged_kernel_did_not_run(bundle: Bundle, tmp_path: Path) -> None:
    class Dense(Recorded):
        def kernel_calls(self) -> dict[str, int]:
            return {"reference": 3}

    rival = Dense(tmp_path / "weights")
    rival.file.write_bytes(b"weights")
    with pytest.raises(WeightpagerError, match="expected the paged kernel of"):
        measure(rival, method("ours"), bundle, list(bundle.tasks), job_of("ours", bundle, tmp_path, repeats=0))


def test_a_trace_that_was_not_proved_cold_says_so(bundle: Bundle, tmp_path: Path, memory_file_system: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=memory_file_system) as file:
        rival, tasks = Recorded(Path(file.name)), list(bundle.tasks)
        found = measure(rival, method("ours"), bundle, tasks, job_of("ours", bundle, tmp_path, repeats=0))
        assert "keeps its files in memory" in found.cold_note
        none = measure(rival, method("ours"), bundle, tasks, job_of("ours", bundle, tmp_path, repeats=0, visits=0))
        assert none.cold_note == ""


def test_a_pace_lets_all_bytes_through() -> None:
    pace, read = Pace(1e9), 0
    for _ in range(3):
        with pace.reading(1000):
            read += 1
    assert read == 3


def test_an_engine_on_a_slow_disk_waits_for_its_bytes(bundle: Bundle) -> None:
    first, second = list(bundle.tasks)[:2]
    with slow_engines(1e7), Engine(bundle, EngineConfig()) as engine:
        engine.activate(first)
        start = time.perf_counter()
        engine.activate(second)
        seconds, loaded = time.perf_counter() - start, engine.report().switches[-1].bytes
    assert loaded > 0
    assert seconds >= loaded / 1e7


def test_without_native_code_no_disk_is_imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weightpager.kernels._native", None)
    with pytest.raises(ConfigError, match="native module"), slow_engines(1e6):
        pass


def test_what_needs_torch_is_skipped_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [each.name for each in METHODS if not each.skipped] == NATIVE
    assert method("offload").skipped == "no package torch; install 'weightpager[bench]'"
