"""One engine, one thing at a time; what holds after any sequence is in test_any_sequence.py."""

from __future__ import annotations

import copy
import pickle
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny
import weightpager as wp
from encoder_tasks import INPUTS, logits, room_in_use
from engines import check_pages
from faults import FaultyStore
from weightpager.backends.torch.export import export_task
from weightpager.backends.torch.parameters import read_parameters
from weightpager.bundle import Bundle
from weightpager.bundle.files import tensor_file
from weightpager.bundle.files.tensor_file import parse_header
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.names import RESIDENT
from weightpager.config import EngineConfig
from weightpager.errors import (
    BudgetError,
    ConfigError,
    EngineClosedError,
    InferenceOnlyError,
    PageCorruptError,
    StoreError,
    SwitchFailedError,
    TaskNotActiveError,
    TaskTooLargeError,
    UnknownTaskError,
)
from weightpager.runtime.budget import MemoryNeeds
from weightpager.runtime.memory.memory_budget import MemoryBudget
from weightpager.store import LocalStore, StorageModel, switch_cost


def fresh(path: Path, task: str) -> torch.Tensor:
    with wp.Engine.from_pretrained(path) as engine, engine.task(task) as module:
        return logits(module)


def tight(path: Path, *tasks: str) -> int:
    """The budget that just holds these tasks together."""
    return room_in_use(Bundle.open(path), *tasks)


@pytest.mark.parametrize("task", ["animal", "weather", "number", "colour"])
def test_a_task_equals_its_exported_dense_model(assistant_bundle: Path, task: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    kind = AutoModelForTokenClassification if task == "colour" else AutoModelForSequenceClassification
    exported = kind.from_pretrained(export_task(Bundle.open(assistant_bundle), task, tmp_path / "out")).eval()
    torch.testing.assert_close(fresh(assistant_bundle, task), logits(exported), rtol=1e-4, atol=1e-4)
    names = [exported.config.id2label[number] for number in range(exported.config.num_labels)]
    assert names == Bundle.open(assistant_bundle).task(task).classes


def test_a_task_that_never_fits_is_no_matter_of_who_leaves(assistant_bundle: Path) -> None:
    first, second = "weather", "number"
    both = tight(assistant_bundle, first, second)
    assert both > max(tight(assistant_bundle, first), tight(assistant_bundle, second))
    with wp.Engine.from_pretrained(assistant_bundle, budget=both - 1, real_time=[first]) as engine:
        with pytest.raises(TaskTooLargeError, match="beside the real-time tasks") as error:
            engine.check_fits(second)
        assert error.value.smallest == both
        with pytest.raises(TaskTooLargeError), engine.task(second):
            pass
        with pytest.raises(UnknownTaskError):
            engine.check_fits("wether")
        engine.set_budget(both)
        engine.check_fits(second)
        logits(engine.activate(second))
    with wp.Engine.from_pretrained(assistant_bundle, budget=both - 1) as engine, engine.task(first):
        engine.check_fits(second)
        with pytest.raises(BudgetError) as busy, engine.task(second):
            pass
        assert not isinstance(busy.value, TaskTooLargeError)


@pytest.mark.parametrize("task", ["animals", "numbers"])
def test_a_decoder_generates_what_its_exported_model_generates(writer_bundle: Path, task: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    exported = AutoModelForCausalLM.from_pretrained(export_task(Bundle.open(writer_bundle), task, tmp_path / "out"))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with wp.Engine.from_pretrained(writer_bundle) as engine, engine.task(task) as module:
        found = module.generate(**INPUTS, **options)
        torch.testing.assert_close(logits(module), logits(exported.eval()), rtol=1e-4, atol=1e-4)
    assert found.tolist() == exported.generate(**INPUTS, **options).tolist()


def test_a_switch_reads_only_the_differential_set(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    store = FaultyStore(LocalStore(bundle))
    total = 0
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        for before, after in (("animal", "weather"), ("weather", "colour"), ("colour", "animal")):
            engine.deactivate()
            engine.evict()
            engine.activate(before)
            read = store.pages_read
            engine.activate(after)
            planned = switch_cost(bundle, before, after, StorageModel())
            report = engine.report().switches[-1]
            assert (store.pages_read - read) * bundle.page_bytes == planned.bytes == report.bytes
            total += planned.bytes
            assert report.reads == planned.reads
            assert (report.from_task, report.to_task) == (before, after)
    assert total > 0


def test_a_resident_task_is_activated_without_a_read(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        for task in ("animal", "weather"):
            engine.activate(task)
        engine.activate("animal")
        assert engine.report().switches[-1].bytes == 0


def test_modules_are_built_once_and_share_resident_parameters(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        animal = engine.activate("animal")
        weather = engine.activate("weather")
        assert engine.activate("animal") is animal
        shared = "bert.encoder.layer.0.attention.self.query.bias"
        assert animal.get_parameter(shared).data_ptr() == weather.get_parameter(shared).data_ptr()
        table = "bert.embeddings.word_embeddings.table"
        assert animal.get_buffer(table).data_ptr() == weather.get_buffer(table).data_ptr()
        assert (
            animal.get_parameter("classifier.weight").data_ptr()
            != weather.get_parameter("classifier.weight").data_ptr()
        )


def test_tasks_nest_when_they_fit_and_are_refused_when_not(assistant_bundle: Path) -> None:
    both = tight(assistant_bundle, "animal", "weather")
    expected = fresh(assistant_bundle, "animal")
    with (
        wp.Engine.from_pretrained(assistant_bundle, budget=both) as engine,
        engine.task("animal") as animal,
        engine.task("weather") as weather,
    ):
        assert torch.equal(logits(weather), fresh(assistant_bundle, "weather"))
        assert torch.equal(logits(animal), expected)
    with wp.Engine.from_pretrained(assistant_bundle, budget=both - 4096) as engine, engine.task("animal") as animal:
        with pytest.raises(BudgetError) as error, engine.task("weather"):
            pass
        assert error.value.smallest == both
        assert str(both) in str(error.value)
        assert torch.equal(logits(animal), expected)


def test_a_refusal_names_who_uses_the_tasks_that_leave_no_room(assistant_bundle: Path) -> None:
    either = max(tight(assistant_bundle, "animal"), tight(assistant_bundle, "weather"))
    with wp.Engine.from_pretrained(assistant_bundle, budget=either) as engine:

        def refused() -> str:
            with pytest.raises(BudgetError) as error, engine.task("weather"):
                pass
            return str(error.value).partition("). ")[2]

        current = "Task 'animal' is in use by engine.activate or predict: call engine.deactivate()"
        engine.activate("animal")
        assert refused() == f"{current}."
        with engine.task("animal"):
            assert refused() == f"{current}, and by engine.task: end its 'with' block."
        engine.pin("animal")
        engine.deactivate()
        pinned = "Task 'animal' is in use as it is pinned: call engine.unpin('animal')."
        assert refused() == pinned
        with pytest.raises(BudgetError, match=re.escape(pinned)):
            engine.prefetch("weather")
        engine.unpin("animal")
        engine.activate("weather")
        engine.activate("animal")
    with wp.Engine.from_pretrained(assistant_bundle, budget="1MiB", real_time=["animal"]) as engine:
        engine.set_budget(tight(assistant_bundle, "animal"))
        with pytest.raises(TaskTooLargeError, match="real-time") as error:
            engine.activate("weather")
        assert "is in use" not in str(error.value)


def test_a_module_outside_its_block_refuses_to_run(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        with engine.task("animal") as module:
            pass
        with pytest.raises(TaskNotActiveError, match="with engine.task"):
            logits(module)


def test_too_small_a_budget_names_the_smallest_that_would_do(assistant_bundle: Path) -> None:
    with pytest.raises(BudgetError, match="The smallest budget that would do is") as error:
        wp.Engine.from_pretrained(assistant_bundle, budget="64KiB")
    smallest = error.value.smallest
    wp.Engine.from_pretrained(assistant_bundle, budget=smallest).close()
    with pytest.raises(BudgetError):
        wp.Engine.from_pretrained(assistant_bundle, budget=smallest - 1)


def test_the_budget_is_an_upper_bound(assistant_bundle: Path) -> None:
    budget = tight(assistant_bundle, "animal") + 5000
    with wp.Engine.from_pretrained(assistant_bundle, budget=budget) as engine:
        assert engine.report().memory.total <= budget


@pytest.mark.parametrize("budget", ["64 parsecs", "", "-1MiB", 0])
def test_a_wrong_budget_is_refused(assistant_bundle: Path, budget: str | int) -> None:
    with pytest.raises(ConfigError, match="budget: expected"):
        wp.Engine.from_pretrained(assistant_bundle, budget=budget)


def test_an_unknown_task_is_refused_with_a_hint(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        with pytest.raises(UnknownTaskError, match="Did you mean 'weather'"), engine.task("wether"):
            pass
        with pytest.raises(UnknownTaskError):
            engine.activate("nothing like it")


def test_an_engine_finds_its_bundle_when_the_process_has_gone_elsewhere(
    assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(assistant_bundle.parent)
    with wp.Engine.from_pretrained(assistant_bundle.name) as engine:
        monkeypatch.chdir(tmp_path)
        assert engine.tokenizer()("red cat")["input_ids"] == [2, 4, 7, 3]
        assert not engine.reload().changed


def test_a_closed_engine_refuses(assistant_bundle: Path) -> None:
    engine = wp.Engine.from_pretrained(assistant_bundle)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.activate("animal")


def test_a_failing_read_in_the_prepare_phase_leaves_the_old_task(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        animal = engine.activate("animal")
        store.failing = 1
        with pytest.raises(StoreError, match="cable"):
            engine.activate("weather")
        assert engine.report().active == ("animal",)
        assert torch.equal(logits(animal), fresh(assistant_bundle, "animal"))
        assert torch.equal(logits(engine.activate("weather")), fresh(assistant_bundle, "weather"))


def test_a_failing_read_in_the_commit_phase_leaves_no_task_and_nothing_wrong(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    pairs = [(a, b) for a in bundle.tasks for b in bundle.tasks if len(bundle.pages_of(a)) >= len(bundle.pages_of(b))]
    old, new = max(pairs, key=lambda pair: len(np.setdiff1d(bundle.pages_of(pair[1]), bundle.pages_of(pair[0]))))
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(tight(assistant_bundle, old)), lambda _: store) as engine:
        module = engine.activate(old)
        plan = engine.blocks.plan(bundle.task_numbers[new], previous=bundle.task_numbers[old])
        assert plan is not None
        assert len(plan.commit)
        store.bad = set(plan.commit.tolist())
        with pytest.raises(SwitchFailedError, match="no task is active now: a bad sector"):
            engine.activate(new)
        store.bad = set()
        assert engine.report().active == ()
        with pytest.raises(TaskNotActiveError):
            logits(module)
        assert engine.verify() == []
        check_pages(engine)
        for task in (new, old):
            assert torch.equal(logits(engine.activate(task)), fresh(assistant_bundle, task))


def test_a_damaged_page_is_found_on_load(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        store.damaging = 1
        with pytest.raises(PageCorruptError, match="BLAKE3"):
            engine.activate("animal")
        assert torch.equal(logits(engine.activate("animal")), fresh(assistant_bundle, "animal"))


def test_verify_finds_a_flipped_bit_in_the_arena(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        engine.activate("animal")
        assert engine.verify() == []
        page = int(engine.blocks.resident()[0])
        engine._memory.arena.content(int(engine.blocks.page_table[page]))[3] ^= 1
        assert engine.verify() == [page]


def test_pins_keep_pages_and_unpin_lets_them_go(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        engine.pin("animal")
        engine.activate("weather")
        engine.deactivate()
        engine.evict()
        assert set(engine.blocks.resident()) == set(engine.bundle.pages_of("animal"))
        engine.unpin("animal")
        with pytest.raises(TaskNotActiveError, match="not pinned"):
            engine.unpin("animal")
        engine.evict()
        assert len(engine.blocks.resident()) == 0


@pytest.mark.slow
def test_an_open_engine_goes_on_when_its_bundle_is_replaced(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    wp.compile(content, out=tmp_path / "a.bundle")
    expected = {task: fresh(tmp_path / "a.bundle", task) for task in content["tasks"]}
    with wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine:
        engine.activate("animal")
        wp.compile(content | {"sparsity": 0.1}, out=tmp_path / "a.bundle", force=True)
        for task, logits_before in expected.items():
            assert torch.equal(logits(engine.activate(task)), logits_before)
        assert engine.verify() == []


def test_parameters_that_were_checked_are_those_that_are_used(
    assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bundle"
    shutil.copytree(assistant_bundle, path)
    bundle = Bundle.open(path)
    expected = read_parameters(bundle, RESIDENT)

    def late(start: bytes, size: int) -> object:
        other = tmp_path / "other"
        save_file({name: torch.zeros_like(value) for name, value in expected.items()}, other)
        other.replace(path / RESIDENT)
        return parse_header(start, size)

    monkeypatch.setattr(tensor_file, "parse_header", late)
    found = read_parameters(bundle, RESIDENT)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_unpin_undoes_nothing_but_pins(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        with engine.task("animal") as module:
            with pytest.raises(TaskNotActiveError, match="not pinned"):
                engine.unpin("animal")
            logits(module)
        with engine.task("animal") as module:
            logits(module)


def test_an_arena_that_the_machine_refuses_is_a_budget_error(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    bundle = Bundle.open(assistant_bundle)
    resource.setrlimit(resource.RLIMIT_AS, (used, before[1]))
    try:
        with pytest.raises(BudgetError, match="this machine refuses"):
            MemoryBudget(None, MemoryNeeds(1 << 20, 1, 1 << 20, footprint(bundle)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_leaving_a_task_waits_for_a_layer_that_is_reading(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        engine.activate("animal")
        gate = engine._open.tasks["animal"].gate
        reader = object()
        gate.enter(reader, 0)
        leaving = threading.Thread(target=engine.deactivate)
        leaving.start()
        leaving.join(0.1)
        assert leaving.is_alive()
        assert len(engine.blocks.locked())
        gate.leave(reader)
        leaving.join(10)
        assert not len(engine.blocks.locked())


def test_threads_share_an_engine(assistant_bundle: Path) -> None:
    expected = {task: fresh(assistant_bundle, task) for task in ("animal", "weather", "number", "colour")}
    wrong: list[str] = []

    def work(engine: wp.Engine, seed: int) -> None:
        for step in range(15):
            task = list(expected)[(seed + step * (seed + 1)) % 4]
            try:
                with engine.task(task) as module:
                    if not torch.equal(logits(module), expected[task]):
                        wrong.append(task)
            except BudgetError:
                continue

    with wp.Engine.from_pretrained(assistant_bundle, budget=tight(assistant_bundle, "animal", "weather")) as engine:
        threads = [threading.Thread(target=work, args=(engine, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check_pages(engine)
    assert wrong == []


def test_predictions_of_several_threads_follow_one_another(assistant_bundle: Path) -> None:
    tasks = ("animal", "weather", "number", "colour")
    budget = max(tight(assistant_bundle, task) for task in tasks)
    with wp.Engine.from_pretrained(assistant_bundle, budget=budget) as engine:
        expected = {task: engine.predict(task, ["red cat"]) for task in tasks}
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda task: (task, engine.predict(task, ["red cat"])), tasks * 10))
    assert all(answer == expected[task] for task, answer in found)


def test_a_module_is_neither_copied_nor_saved_nor_given_values(assistant_bundle: Path, tmp_path: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        module = engine.activate("animal")
        before = logits(module)
        for refused in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="'weightpager export' writes an ordinary one"):
                refused(module)
        with pytest.raises(InferenceOnlyError, match="'weightpager export' writes all of them"):
            module.save_pretrained(tmp_path / "saved")  # type: ignore[operator]
        with pytest.raises(InferenceOnlyError, match="takes no other values"):
            module.load_state_dict({name: value * 0 for name, value in module.state_dict().items()})
        assert not (tmp_path / "saved").exists()
        assert torch.equal(logits(module), before)


@pytest.mark.parametrize("cast", ["half", "double", "bfloat16"])
def test_a_module_is_cast_only_by_opening_the_bundle_so(assistant_bundle: Path, cast: str) -> None:
    with wp.Engine.from_pretrained(assistant_bundle, backend="torch") as engine:
        module = engine.activate("animal")
        before = logits(module)
        with pytest.raises(InferenceOnlyError, match="open the bundle with the dtype and device that you want"):
            getattr(module, cast)()
        assert torch.equal(logits(module), before)


def test_a_module_moves_nowhere_else(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle, backend="torch") as engine:
        module = engine.activate("animal")
        before = logits(module)
        with pytest.raises(InferenceOnlyError, match="from torch.float32 on cpu to torch.float32 on meta"):
            module.to("meta")
        assert module.to("cpu") is module
        assert module.cpu() is module
        assert torch.equal(logits(module), before)


def test_a_module_is_not_put_into_training(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle, backend="torch") as engine:
        module = engine.activate("animal")
        with pytest.raises(InferenceOnlyError, match="for inference, and dropout would change its answers"):
            module.train()
        assert module.eval() is module
        assert not any(part.training for part in module.modules())


@pytest.mark.parametrize("setting", ["budget", "kv_reserve", "rows"])
def test_a_setting_that_is_no_size_is_named(assistant_bundle: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}: expected a number with a unit"):
        wp.Engine.from_pretrained(assistant_bundle, **{setting: "much"})  # type: ignore[arg-type]


def test_real_time_tasks_are_a_list(assistant_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"such as \['animal'\]"):
        wp.Engine.from_pretrained(assistant_bundle, real_time="animal")


@pytest.mark.slow
def test_a_forked_child_leaves_the_engine_alone(assistant_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys, weightpager as wp
from weightpager.errors import EngineClosedError
with wp.Engine.from_pretrained({str(assistant_bundle)!r}, history={str(tmp_path / "history")!r}) as engine:
    engine.activate("animal"); engine.activate("weather")
    child = os.fork()
    if child == 0:
        for method in (engine.report, engine.verify, engine.evict, engine.deactivate, lambda: engine.resident_tasks):
            try:
                method()
            except EngineClosedError:
                continue
            os._exit(1)
        sys.exit(0)  # leaves the block, and runs what runs at the end of a process
    assert os.waitpid(child, 0)[1] == 0
    print(len(engine.resident_tasks))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 2
    with wp.Engine.from_pretrained(assistant_bundle, history=tmp_path / "history") as engine:
        assert [visit.task for visit in engine.monitor.visits()] == ["animal", "weather"]
