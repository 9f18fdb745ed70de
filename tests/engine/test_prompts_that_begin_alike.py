"""Prompts that begin as earlier ones did: read from there on, and answered to the bit as by a fresh engine."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tiny
import weightpager as wp
from lora import lora
from running import serving
from weightpager.answers.kept import Prefixes, TextPieces
from weightpager.answers.model import Floats, TaskModel
from weightpager.answers.work import GREEDY
from weightpager.backends.torch.generation import TorchPiece
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Pictures
from weightpager.compiler.repack import repack
from weightpager.errors import BudgetError, ConfigError
from weightpager.kernels.choice import NATIVE
from weightpager.readers.picture import Picture
from weightpager.runtime.budget import smallest_budget
from weightpager.runtime.memory.prefix_cache import PrefixCache

BACKENDS = ["torch", *(["native"] if NATIVE else [])]
PIECE = 64
ROOM = 1 << 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two tasks of a decoder that reads a thousand tokens."""
    folder = tmp_path_factory.mktemp("long")
    content = tiny.writer(folder)
    config = Path(content["model"]) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    return wp.compile(content | {"compare": "none"}, folder / "bundle")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.answers.model.PIECE", PIECE)


@pytest.fixture
def engine(bundle: Bundle, backend: str) -> Iterator[wp.Engine]:
    with wp.load(bundle.path, backend=backend, prefix_cache=ROOM) as engine:
        yield engine


def tokens(engine: wp.Engine) -> tuple[int, int]:
    """Tokens that weren't read again, and those that were read in whole pieces."""
    report = engine.report().prefixes
    assert report is not None
    return report.hits, report.misses


def words(count: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(tiny.WORDS, k=count))


def last_hidden(model: TaskModel, ids: list[int], pieces: TextPieces | None) -> Floats:
    """The hidden states of a prompt's last piece."""
    given = np.array([ids])
    texts = model.grow(given, np.ones_like(given), GREEDY, 0, 4)
    if pieces is not None:
        texts.take_over(pieces)
    while texts.unread:
        texts.read_piece()
    return texts._reading.hidden(texts.ids, texts._mask)


@pytest.mark.parametrize("seed", range(4))
def test_hidden_states_are_the_same_bits(engine: wp.Engine, seed: int) -> None:
    drawn, cache = random.Random(seed), PrefixCache(ROOM)
    prompts: dict[str, list[int]] = {"animals": [], "numbers": []}
    for _ in range(12):
        task = drawn.choice(list(prompts))
        ids = prompts[task] = prompts[task][: drawn.randrange(600)]
        ids += drawn.choices(range(4, 16), k=drawn.randrange(1, 300))
        with engine.task(task):
            model = engine.model(task)
            kept = Prefixes(cache, task.encode()).of(np.array(ids), (), None)
            assert np.array_equal(last_hidden(model, ids, kept), last_hidden(model, ids, None))
    assert cache.report.hits > 0


def test_a_conversation_is_read_on_across_switches(engine: wp.Engine, bundle: Bundle, backend: str) -> None:
    said = {task: words(70, seed) for seed, task in enumerate(bundle.tasks)}
    with wp.load(bundle.path, backend=backend) as fresh:
        for turn in range(6):
            for task in said:
                found = engine.generate(task, said[task], max_new_tokens=6)
                assert found == fresh.generate(task, said[task], max_new_tokens=6)
                said[task] += f" {found.completion} {words(40, turn)}"
    hits, misses = tokens(engine)
    assert misses <= 2 * max(len(each.split()) for each in said.values())
    assert hits > 2 * misses


def test_streams_and_batches(engine: wp.Engine, bundle: Bundle, backend: str) -> None:
    prompt = words(200)
    with wp.load(bundle.path, backend=backend) as fresh:
        wanted = fresh.generate("animals", prompt, max_new_tokens=6).completion
    for _ in range(2):
        assert "".join(engine.stream("animals", prompt, max_new_tokens=6)) == wanted
    assert tokens(engine) == (192, 192)
    alike = engine.predict("animals", [prompt, prompt], max_new_tokens=6, batch_size=2)
    assert tokens(engine) == (192, 192)  # those that are read together aren't taken over
    assert len(alike) == 2


def test_another_task_reads_for_itself(engine: wp.Engine) -> None:
    for task in ("animals", "numbers"):
        engine.generate(task, words(100), max_new_tokens=1)
    assert tokens(engine) == (0, 128)


def test_a_repair_forgets(engine: wp.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.generate("animals", words(100), max_new_tokens=1)
    monkeypatch.setattr(engine._open.page_check, "repair", lambda: [0])
    engine.repair()
    engine.generate("animals", words(100), max_new_tokens=1)
    assert tokens(engine) == (0, 128)


def test_it_is_a_part_of_the_budget(bundle: Bundle, backend: str) -> None:
    least = smallest_budget(bundle)
    with pytest.raises(BudgetError, match=r"the prefix cache.*smallest budget that would do is"):
        wp.load(bundle.path, backend=backend, budget=least, prefix_cache="1MiB")
    with wp.load(bundle.path, backend=backend, budget=least + ROOM, prefix_cache=ROOM) as engine:
        assert engine.report().memory.prefixes == ROOM
        for seed in range(12):
            engine.generate("animals", words(500, seed), max_new_tokens=1)
        report = engine.report().prefixes
        assert report is not None
        assert ROOM // 2 < report.bytes <= ROOM
        assert report.evicted > 0
    with wp.load(bundle.path, backend=backend) as without:
        assert without.report().prefixes is without.report().memory.prefixes is None
    with pytest.raises(ConfigError, match="prefix_cache: expected zero bytes or more"):
        wp.EngineConfig(prefix_cache=-1)


def test_prompts_about_other_pictures_are_others() -> None:
    form = Pictures(blocks="shared", layers=1, token="<image>", token_id=9, tokens=4, width=8)
    cache, ids = PrefixCache(ROOM), np.array([1, 9, 9, 9, 9, 2, 9, 9, 9, 9, 3])
    seen = {name: Picture(name.encode() * 32, lambda: np.zeros((3, 2, 2), np.float32), 4) for name in "abc"}

    def pieces(first: str, second: str) -> TextPieces:
        return Prefixes(cache, b"task").of(ids, [seen[first], seen[second]], form)

    read = pieces("a", "b")
    for tokens in (3, 5):
        read.keep(TorchPiece(tokens, []), whole=True)
    for asked, wanted, common in (("ab", [3, 5], 8), ("ac", [3, 0], 6), ("ca", [0, 0], 1)):
        other = pieces(*asked)
        assert [found[1] if (found := other.find(stop, whole=True)) else 0 for stop in (3, 8)] == wanted
        some = pieces(*asked)
        while some.find(8, whole=False):
            pass
        assert some._known == common


def test_a_reload_keeps_what_is_of_tasks_that_stay(bundle: Bundle, backend: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.bundle"
    shutil.copytree(bundle.path, path)
    with wp.load(path, backend=backend, prefix_cache=ROOM) as engine:
        for wanted in ((0, 64), (64, 64), (64, 128)):
            engine.generate("animals", words(100), max_new_tokens=1)
            assert tokens(engine) == wanted
            engine.deactivate()
            engine.reload()
            if wanted == (64, 64):
                repack(path, path, without=["numbers"], force=True)
                assert engine.reload().changed == ("animals",)


def test_a_servers_conversation_isnt_read_again(bundle: Bundle, backend: str) -> None:
    said = words(100)
    with serving(bundle.path, backend=backend, prefix_cache=ROOM) as running, running.http() as client:
        for _ in range(3):
            answer = client.post("/v1/completions", json={"model": "animals", "prompt": said, "max_tokens": 8})
            assert answer.status_code == 200
            said += answer.json()["choices"][0]["text"] + f" {words(30)}"
        seen, metrics = client.get("/status").json(), client.get("/metrics").text
    assert (seen["prefixes"]["hits"], seen["prefixes"]["misses"]) == (64 + 128, 64 + 64)
    assert seen["memory"]["prefixes"] == ROOM
    assert "\nweightpager_prefix_hit_tokens_total 192.0\n" in metrics
    with wp.load(bundle.path, backend=backend) as fresh:
        wanted = fresh.generate("animals", said, max_new_tokens=8).completion
    with wp.load(bundle.path, backend=backend, prefix_cache=ROOM) as engine:
        assert [engine.generate("animals", said, max_new_tokens=8).completion for _ in range(2)] == [wanted] * 2


@pytest.fixture(scope="module")
def whole_numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of a decoder in int4, which answer conversations; one has an adapter and a message of its own."""
    folder = tmp_path_factory.mktemp("int4")
    own, path = tiny.tokenizer(), tiny.llama(folder / "model")
    own.eos_token, own.chat_template = "[SEP]", tiny.TEMPLATE
    own.save_pretrained(path)
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    lora(path, folder / "lora")
    tasks = {
        "chat": {"kind": "text-generation"},
        "german": {"kind": "text-generation", "adapter": str(folder / "lora"), "system": "cow dog"},
    }
    content = {"model": str(path), "block": "8x8", "page": "4KiB", "tasks": tasks}
    return wp.compile(content, folder / "a.bundle", cache=False).path


@pytest.mark.skipif(not NATIVE, reason="torch's products have other bits for another number of tokens")
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_a_conversation_goes_on_behind_its_last_answer(whole_numbers: Path) -> None:
    drawn = random.Random(0)
    said: dict[str, list[dict[str, str]]] = {"chat": [], "german": []}
    with wp.load(whole_numbers, prefix_cache=4 * ROOM) as engine, wp.load(whole_numbers) as fresh:
        for turn in range(12):
            for task, messages in said.items():
                new = words(drawn.randrange(1, 40), turn)
                messages.append({"role": "user", "content": new})
                before = tokens(engine)
                found = engine.generate(task, messages, max_new_tokens=drawn.randrange(1, 90))
                assert found == fresh.generate(task, messages, max_new_tokens=found.tokens or 1)
                messages.append({"role": "assistant", "content": found.completion or ""})
        hits, misses = tokens(engine)
        assert hits > 4 * misses
        assert misses - before[1] <= len(new.split()) + 8  # the end of the answer, and the template's words
