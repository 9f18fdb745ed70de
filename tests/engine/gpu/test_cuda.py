"""On a GPU: that pages arrive whole, in order, and beside the computing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import weightpager as wp
from encoder_tasks import INPUTS, TASKS
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.errors import ConfigError, TaskNotActiveError
from weightpager.kernels.torch import calls, isa
from weightpager.runtime.memory.cuda_device import CudaCopier

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


def logits(module: torch.nn.Module, device: str = "cuda") -> torch.Tensor:
    with torch.inference_mode():
        return module(**{name: tensor.to(device) for name, tensor in INPUTS.items()}).logits


@pytest.fixture(scope="module")
def expected(assistant_bundle: Path) -> dict[str, torch.Tensor]:
    found = {}
    for task in TASKS:
        with wp.Engine.from_pretrained(assistant_bundle, device="cuda") as engine:
            found[task] = logits(engine.activate(task))
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused(assistant_bundle: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"got '{device}' and found torch {torch.__version__[:3]}.*CUDA"):
        wp.Engine.from_pretrained(assistant_bundle, device=device)


@needs_gpu
def test_a_device_number_that_is_not_there_is_refused(assistant_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="found devices cuda:0 to"):
        wp.Engine.from_pretrained(assistant_bundle, device="cuda:99")


@needs_gpu
def test_the_gpus_own_kernels_answer_as_the_cpu_does(assistant_bundle: Path, expected: dict[str, torch.Tensor]) -> None:
    assert isa("cuda") == "triton"
    assert calls()["triton"] > 0
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        for task in TASKS:
            torch.testing.assert_close(expected[task].cpu(), logits(engine.activate(task), "cpu"), rtol=1e-2, atol=1e-2)


@needs_gpu
def test_outputs_are_bit_equal_after_random_switches(assistant_bundle: Path, expected: dict[str, torch.Tensor]) -> None:
    bundle = Bundle.open(assistant_bundle)
    pages = max(len(bundle.pages_of(task)) for task in TASKS)
    budget = footprint(bundle).total + pages * bundle.page_bytes + (4 << 20)
    drawn = random.Random(0)
    with wp.Engine.from_pretrained(assistant_bundle, device="cuda", budget=budget) as engine:
        found = []
        for _ in range(200):
            task = drawn.choice(TASKS)
            # Not waited for: the next switch evicts pages that these kernels may not have read yet.
            found.append((task, logits(engine.activate(task, wait=drawn.random() < 0.5))))
        for task, output in found:
            assert torch.equal(output, expected[task])
        assert engine.verify() == []
        assert engine.report().kernel == "triton"


@needs_gpu
def test_outputs_are_those_of_the_cpu(assistant_bundle: Path, expected: dict[str, torch.Tensor]) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        for task in TASKS:
            on_cpu = logits(engine.activate(task), "cpu")
            torch.testing.assert_close(expected[task].cpu(), on_cpu, rtol=1e-2, atol=1e-2)


@needs_gpu
def test_damage_is_found_and_repaired(assistant_bundle: Path, expected: dict[str, torch.Tensor]) -> None:
    with wp.Engine.from_pretrained(assistant_bundle, device="cuda") as engine:
        module = engine.activate("animal")
        page = int(engine.blocks.resident()[0])
        engine._memory.arena.pages[int(engine.blocks.page_table[page]), 17] ^= 8
        assert engine.verify() == engine.repair() == [page]
        assert torch.equal(logits(module), expected["animal"])


@needs_gpu
def test_staging_is_pinned() -> None:
    assert CudaCopier(torch.device("cuda", 0)).buffer(1 << 20).is_pinned()


@needs_gpu
def test_copies_run_beside_kernels() -> None:
    copier = CudaCopier(torch.device("cuda", 0))
    target, source = copier.memory(1, 1, 1 << 20).pages, copier.buffer(1 << 20)
    source.fill_(7)
    torch.cuda._sleep(1_000_000_000)  # cycles: a kernel that takes long, in the stream that computes
    computed = torch.cuda.current_stream().record_event()
    copier.start(lambda: target[0].copy_(source, non_blocking=True), ()).synchronize()
    assert not computed.query()
    assert int(target.sum()) == 7 << 20


@needs_gpu
def test_copies_wait_for_kernels_that_have_been_noted() -> None:
    copier = CudaCopier(torch.device("cuda", 0))
    target, source = copier.memory(1, 1, 1 << 20).pages, copier.buffer(1 << 20)
    torch.cuda._sleep(1_000_000_000)
    copier.note_read()
    computed = torch.cuda.current_stream().record_event()
    copied = copier.start(lambda: target[0].copy_(source, non_blocking=True), copier.reads())
    assert not copied.query()
    copied.synchronize()
    assert computed.query()


@needs_gpu
def test_a_graph_that_would_pass_the_gate_by_is_refused(
    assistant_bundle: Path, expected: dict[str, torch.Tensor]
) -> None:
    with wp.Engine.from_pretrained(assistant_bundle, device="cuda") as engine:
        module = engine.activate("animal")
        logits(module)
        with pytest.raises(TaskNotActiveError, match="CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            logits(module)
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_reads_of_a_graph_are_not_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    copier = CudaCopier(torch.device("cuda", 0))
    with pytest.raises(TaskNotActiveError, match="a CUDA graph can't hold paged layers"):
        copier.note_read()
    assert copier.reads() == ()
