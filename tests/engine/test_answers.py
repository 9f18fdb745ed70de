"""What an engine answers by itself: texts as they grow, and what it says to who asks in another way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny
import weightpager as wp
from encoder_tasks import room_in_use
from same_everywhere import same_everywhere
from weightpager.bundle.garbage import collect
from weightpager.kernels.choice import NATIVE

BACKENDS = pytest.mark.parametrize(
    "backend",
    ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="the native kernels are not built"))],
)


@pytest.fixture(params=["torch", "native"])
def writer(request: pytest.FixtureRequest, writer_bundle: Path) -> Iterator[wp.Engine]:
    if request.param == "native" and not NATIVE:
        pytest.skip("the native kernels are not built")
    with wp.load(writer_bundle, backend=request.param) as engine:
        yield engine


def test_a_streamed_text_is_the_predicted_one(writer: wp.Engine) -> None:
    (whole,) = writer.predict("numbers", ["one two"], max_new_tokens=12)
    pieces = list(writer.stream("numbers", "one two", max_new_tokens=12))
    assert len(pieces) > 1
    assert "".join(pieces) == whole.label


def test_others_have_turns_between_the_pieces_of_a_stream(writer_bundle: Path) -> None:
    bundle = wp.Bundle.open(writer_bundle)
    with wp.load(writer_bundle, budget=max(room_in_use(bundle, name) for name in bundle.tasks)) as engine:
        alone = {name: engine.predict(name, ["one two"], max_new_tokens=8)[0].label for name in engine.tasks}
        before = dict(engine.monitor.requests)
        streams = {name: engine.stream(name, "one two", max_new_tokens=8) for name in engine.tasks}
        assert engine.monitor.requests == before
        told = dict.fromkeys(streams, "")
        for _ in range(8):
            for name, stream in streams.items():
                told[name] += next(stream, "")
        assert told == alone
        assert len(engine.report().switches) > 8  # they don't fit together


def test_a_stream_is_one_visit_and_holds_nothing_between_its_pieces(writer: wp.Engine) -> None:
    stream = writer.stream("numbers", "one two", max_new_tokens=8)
    next(stream)
    writer.deactivate()
    assert writer.report().active == ()
    list(stream)
    assert writer.monitor.requests["numbers"] == 2  # it came back once, after it had been left
    list(writer.stream("numbers", "one two", max_new_tokens=8))
    assert writer.monitor.requests["numbers"] == 3


def test_a_real_time_task_streams_beside_the_current_one(writer_bundle: Path) -> None:
    with wp.load(writer_bundle, real_time=["numbers"]) as engine:
        engine.activate("animals")
        (whole,) = engine.predict("numbers", ["one"], max_new_tokens=6)
        assert "".join(engine.stream("numbers", "one", max_new_tokens=6)) == whole.label
        assert engine.report().active == ("animals", "numbers")
        assert "'animals' is current" in repr(engine)


def test_several_threads_may_take_the_pieces_of_a_stream(writer: wp.Engine) -> None:
    (whole,) = writer.predict("numbers", ["one two"], max_new_tokens=6)
    stream, pieces = writer.stream("numbers", "one two", max_new_tokens=6), []
    while (piece := taken_elsewhere(stream)) is not None:
        pieces.append(piece)
    assert "".join(pieces) == whole.label


def taken_elsewhere(stream: Iterator[str]) -> str | None:
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(next(stream, None)))
    thread.start()
    thread.join()
    return found[0]


def test_a_stream_says_at_once_what_is_wrong(writer: wp.Engine, assistant_bundle: Path) -> None:
    for prompt, words in (
        ("", "at least one token"),
        (3, "expected texts in Unicode, found 3"),
        ("one " * 200, "most"),
    ):
        with pytest.raises(wp.ConfigError, match=words):
            writer.stream("numbers", prompt)  # type: ignore[arg-type]
    with pytest.raises(wp.UnknownTaskError):
        writer.stream("number", "one")
    with (
        wp.load(assistant_bundle) as engine,
        pytest.raises(wp.ConfigError, match="found 'animal' of text-class.*predict"),
    ):
        engine.stream("animal", "red cat")


@pytest.mark.slow
def test_a_stream_of_a_task_that_was_compiled_anew_ends(tmp_path: Path) -> None:
    content, path = tiny.writer(tmp_path), tmp_path / "a.bundle"
    with same_everywhere():
        wp.compile(content, out=path)
    with wp.load(path) as engine:
        stream = engine.stream("numbers", "one two", max_new_tokens=6)
        next(stream)
        engine.deactivate()
        collect(path, drop=["numbers"])
        numbers = content["tasks"]["numbers"] | {"sparsity": 0.7}
        again = {key: content[key] for key in ("model", "calibration")} | {"tasks": {"numbers": numbers}}
        with same_everywhere():
            wp.compile(again, base=path, out=path, force=True)
        assert "numbers" in engine.reload().changed
        with pytest.raises(wp.BusyError, match="task 'numbers' was compiled anew meanwhile; ask again"):
            next(stream)


@BACKENDS
def test_a_task_that_is_given_a_text_says_what_answers_texts(assistant_bundle: Path, backend: str) -> None:
    hint = r"found 'red cat'; engine.predict\('animal', \[...\]\) answers texts"
    with wp.load(assistant_bundle, backend=backend) as engine, engine.task("animal") as task:
        with pytest.raises(TypeError, match=f"task 'animal' takes arrays by name, such as input_ids=..., {hint}"):
            task("red cat")
        with pytest.raises(TypeError, match=r"found \['red cat'\]; engine.predict"):
            task(["red cat"])


@BACKENDS
def test_a_tokenizer_gives_what_the_tasks_of_its_engine_take(assistant_bundle: Path, backend: str) -> None:
    with wp.load(assistant_bundle, backend=backend) as engine:
        more = {"return_tensors": "pt", "padding": True} if backend == "torch" else {}
        inputs = engine.tokenizer()(["red cat", "sun"], **more)
        with engine.task("animal") as task:
            logits = task(**inputs)["logits"]
        labels = [each.label for each in engine.predict("animal", ["red cat", "sun"])]
        best = torch.as_tensor(logits).argmax(-1).tolist()
        assert [engine.tasks["animal"].classes[number] for number in best] == labels


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_what_users_hold_is_shown_in_a_line(assistant_bundle: Path) -> None:
    with wp.load(assistant_bundle, budget="1MB", backend="native") as engine:
        place = repr(str(assistant_bundle))
        assert repr(engine) == f"<Engine {place}: 4 tasks, 976.6 KiB, native>"
        (answer,) = engine.predict("animal", ["red cat"])
        assert repr(answer) == f"Prediction(text='red cat', label={answer.label!r}, score={answer.score!r})"
        assert repr(engine) == f"<Engine {place}: 4 tasks, 976.6 KiB, native, 'animal' is current>"
        tasks = "['animal', 'weather', 'number', 'colour']"
        assert repr(engine.bundle).startswith(f"<Bundle {place}: ")
        assert repr(engine.bundle).endswith(f" in pages, tasks {tasks}>")
        assert repr(engine.module("animal")) == (
            "<NativeTask 'animal': text-classification, input_ids, attention_mask -> logits, hidden>"
        )
    assert repr(engine) == f"<Engine {place}: 4 tasks, 976.6 KiB, native, closed>"


def test_a_path_in_place_of_an_open_bundle_is_refused_with_what_opens_it() -> None:
    for opened in (lambda: wp.Engine("a.bundle"), lambda: wp.Engine(Path("a.bundle"), budget="4MiB")):  # type: ignore
        with pytest.raises(TypeError, match=r"weightpager.load\('a.bundle', budget=...\) opens an engine"):
            opened()
    for path in ("a.bundle", Path("a.bundle")):
        with pytest.raises(TypeError, match=r"Bundle.open\('a.bundle'\) opens a bundle, and weightpager.load"):
            wp.Bundle(path)  # type: ignore[call-arg]
