"""Models whose pictures are runs of patches or tiles, from a directory to answers by both backends and over HTTP."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer

import tiny_llava
import tiny_next
import tiny_qwen2_vl
import tiny_tiles
import weightpager as wp
from made_once import made_once
from running import Running, serving
from tiny_llava import SIDE
from tiny_pictures import answer_of
from tiny_qwen2_vl import MOST, PLACEHOLDER, UNIT
from tiny_tiles import A_SIDE, PLACES
from weightpager.backends.torch.export import export_task
from weightpager.backends.verify import verify
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.model.picture_tower import LANGUAGE
from weightpager.compiler.repack import repack
from weightpager.errors import CompileError, ImageError
from weightpager.kernels.choice import NATIVE
from weightpager.readers.image_reader import Frame
from weightpager.readers.tile_processor import tiles_of
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer
from weightpager.runtime.budget import largest_budget, smallest_budget
from weightpager.server.scheduling.settings import Policy, Settings
from weightpager_lab.contest.prompt import prompt
from weightpager_lab.contest.rivals.ours import _placed, likeliest

pytestmark = pytest.mark.slow

BACKENDS = ["torch", *(["native"] if NATIVE else [])]
TASKS = ("animal", "number")
MODULES: dict[str, Any] = {
    family: module for module in (tiny_qwen2_vl, tiny_tiles, tiny_next) for family in module.FAMILIES
}
"""What makes the models of a family."""
UNSURE = 1e-3
"""Two logits that differ by less may be rounded to either order."""


@pytest.fixture(scope="module", params=MODULES)
def family(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, family: str) -> wp.Bundle:
    """Two tasks over one tower: one of plain prompts, one of conversations."""
    return compiled(tmp_path_factory, family, "int8")


def compiled(factory: pytest.TempPathFactory, family: str, dtype: str) -> wp.Bundle:
    def make(folder: Path) -> None:
        wp.compile(MODULES[family].watcher(folder, family, dtype=dtype), out=folder / "watcher.bundle")

    return wp.Bundle.open(made_once(factory, f"watcher-{family}-{dtype}", make) / "watcher.bundle")


def frame(seed: int) -> Frame:
    """Of an odd size; some are smaller than one place, some are scaled down."""
    random = np.random.default_rng(seed)
    height, width = random.integers(5, 70, 2)
    return random.integers(0, 256, (height, width, 3), np.uint8)


def test_a_bundle_says_how_pictures_stand_in_texts(bundle: wp.Bundle, family: str) -> None:
    stated = bundle.pictures
    assert stated is not None
    window = tiny_qwen2_vl.window_of(family)  # type: ignore[arg-type]
    plain = {
        "blocks": "shared", "layers": 3 if window else 2, "token": MODULES[family].IMAGE, "token_id": PLACEHOLDER,
        "tokens": stated.tokens, "width": 48,
    }  # fmt: skip
    if MODULES[family] is tiny_qwen2_vl:
        plain |= {"runs": {"merge": 2, "window": window}, "around": ("<|vision_start|>", "<|vision_end|>")}
        assert MOST <= stated.tokens < 2 * MOST
    elif MODULES[family] is tiny_next:
        plain |= {"packed": {"side": SIDE, "patches": 2, "sizes": [tuple(size) for size in tiny_next.SIZES]}}
        assert stated.tokens == tiny_next.MOST
    else:
        plain |= {"tiles": {"places": PLACES, "border": "<fake_token_around_image>", "whole": "<global-img>"}}
        assert stated.tokens == PLACES * (1 if "whole" in family else A_SIDE**2 + 1)
    assert stated.plain() == plain
    assert bundle.has_graphs
    assert read_report(bundle).without_graph == {}
    tower = ("base_model.visual.", "base_model.vision_model.", "base_model.vision_tower.")
    of_tower = {weight.layer for weight in bundle.manifest.weights if weight.name.startswith(tower)}
    assert of_tower == set(range(stated.layers))
    moved = {name for name, _ in bundle.permutations().orders}
    assert any(name.startswith(tower) and ".mlp." in name for name in moved)
    assert any(name.startswith(LANGUAGE) for name in moved)
    ops = {node.op for node in bundle.graph("features").nodes}  # type: ignore[union-attr]
    assert ("segment_attention" in ops) == bool(window)
    assert ("rotary" in ops) == (stated.runs is not None)
    assert "cos" not in ops


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, family: str, tmp_path: Path, backend: str
) -> None:
    bundle, compared = compiled(tmp_path_factory, family, "float32"), 0
    export_task(bundle, "animal", folder := tmp_path / "exported")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with wp.load(bundle.path, backend=backend) as engine:
        for seed in range(9):
            frames = [frame(10 * seed + number) for number in range(seed % 3 + 1)]
            given = MODULES[family].asked(folder, frames, "red one")
            options: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
            with torch.inference_mode():
                found = model.generate(**given, max_new_tokens=6, do_sample=False, **options)
            logits = torch.cat(found.logits)
            two = logits.sort(-1).values[:, -2:]
            words = found.sequences[0, given["input_ids"].shape[1] :]
            sure = int(((two[:, 1] - two[:, 0]) > UNSURE).cumprod(0).sum())
            wanted = tokenizer.decode(words[:sure], skip_special_tokens=True)
            answer = engine.generate("animal", "red one", frames, max_new_tokens=6)
            assert (answer.completion or "").strip().startswith(wanted.strip())
            compared += sure
    assert compared > 12


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_and_features_after_any_sequence_are_those_of_a_fresh_engine(bundle: wp.Bundle, backend: str) -> None:
    drawn, frames = random.Random(3), [frame(seed) for seed in range(5)]
    asked = [(task, pictures) for task in TASKS for pictures in ([0], [1], [2, 3], [4, 0, 1], [])]
    fresh = {}
    for number, (task, pictures) in enumerate(asked):
        with wp.load(bundle.path, backend=backend) as engine:
            fresh[number] = answer_of(engine, task, "green one", [frames[each] for each in pictures])
    small, large = smallest_budget(bundle), largest_budget(bundle)
    with wp.load(bundle.path, backend=backend, budget=small) as engine:
        for _ in range(30):
            act = drawn.randrange(6)
            if act == 0:
                engine.set_budget(drawn.choice([small, (small + large) // 2, large]))
            elif act == 1:
                engine.evict()
            else:
                number = drawn.randrange(len(asked))
                task, pictures = asked[number]
                assert answer_of(engine, task, "green one", [frames[each] for each in pictures]) == fresh[number]
        report = engine.report()
    assert report.features is not None
    assert report.features.hits


def all_answers(path: Path, tasks: Iterable[str], backend: str) -> dict[str, Any]:
    asked = [[], [frame(0)], [frame(1), frame(2)]]
    with wp.load(path, backend=backend) as engine:
        return {task: [answer_of(engine, task, "green one", frames) for frames in asked] for task in tasks}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_grows_and_is_packed_anew_without_another_answer(
    tmp_path: Path, bundle: wp.Bundle, family: str, backend: str
) -> None:
    content = MODULES[family].watcher(tmp_path, family, model=str(bundle.path.parent / family), training={"steps": 2})
    shade = tiny_llava.asking(tmp_path, "shade", {"white": "sun", "black": "rain"})
    content["tasks"] = {"shade": shade | {"max_length": content["tasks"]["animal"]["max_length"]}}
    added = {key: value for key, value in content.items() if key not in ("block", "page", "dtype")}
    grown = wp.compile(added, base=bundle.path, out=tmp_path / "grown")
    assert grown.has_graphs
    assert not verify(grown.path).problems
    found = all_answers(grown.path, grown.tasks, backend)
    assert {task: found[task] for task in TASKS} == all_answers(bundle.path, TASKS, backend)
    assert [features for _, features in found["shade"]] == [features for _, features in found["animal"]]
    repack(grown.path, tmp_path / "packed", without=["animal"])
    left = ("number", "shade")
    assert all_answers(tmp_path / "packed", left, backend) == {task: found[task] for task in left}


def test_a_picture_takes_as_many_places_as_its_size_asks_for(bundle: wp.Bundle, family: str) -> None:
    tokenizer = open_tokenizer(bundle)
    assert tokenizer.pictures is not None
    assert bundle.pictures is not None
    pictures = [tokenizer.pictures.read(np.zeros((*size, 3), np.uint8)) for size in ((16, 24), (8, 16), (5, 160))]
    if bundle.pictures.runs is not None:
        assert [picture.grid for picture in pictures] == [(2, 3), (1, 2), (1, 19)]
        assert [picture.tokens for picture in pictures] == [6, 2, 19]
    elif bundle.pictures.packed is not None:
        assert [picture.size for picture in pictures] == [(16, 24), (8, 16), (5, 160)]
        assert [picture.tokens for picture in pictures] == [14, 14, 4]
    else:
        tiles = [(1, 1)] * 3 if "whole" in family else [(2, 3), (2, 3), (1, 3)]
        assert [picture.tiles for picture in pictures] == tiles
        assert [picture.tokens for picture in pictures] == [4 * count for count in map(tiles_of, tiles)]
    assert len({picture.key for picture in pictures}) == 3
    ids, places = tokenizer.prompt("red", bos=False, pictures=3), sum(picture.tokens for picture in pictures)
    assert ids.count(PLACEHOLDER) == 3
    placed = tokenizer.pictures.placed(ids, pictures)
    assert placed.count(PLACEHOLDER) == places
    around = (
        0 if bundle.pictures.tiles is None else sum(2 * tiles_of(picture.tiles or (1, 1)) + 1 for picture in pictures)
    )
    assert len(placed) == len(ids) - 3 + places + around


@pytest.mark.parametrize("backend", BACKENDS)
def test_pictures_that_there_is_no_room_for_are_refused(bundle: wp.Bundle, backend: str) -> None:
    large = np.zeros((40, 60, 3), np.uint8)
    with wp.load(bundle.path, backend=backend) as engine:
        with pytest.raises(wp.WeightpagerError, match="expected at most (128|256) tokens, as the model can"):
            engine.generate("animal", "red", [large] * 40)
        with pytest.raises(ImageError, match="expected sides of at most 1 : 32, found 330 × 10"):
            engine.generate("animal", "red", [np.zeros((10, 330, 3), np.uint8)])


@pytest.fixture(scope="module")
def server(bundle: wp.Bundle) -> Iterator[Running]:
    with serving(bundle.path, Settings(policy=Policy(batch=1))) as running:
        yield running


def url(shown: Frame) -> str:
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_conversations_about_pictures_over_http(bundle: wp.Bundle, server: Running) -> None:
    frames = [frame(1), frame(2)]
    said: list[Any] = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]
    with wp.load(bundle.path) as engine:
        wanted = engine.generate("number", [{"role": "user", "content": said}], frames, max_new_tokens=4)
        reader = engine.reader()
        assert isinstance(reader, Tokenizer)
        assert reader.pictures is not None
        placed = reader.pictures.placed([PLACEHOLDER] * 2, [reader.pictures.read(each) for each in frames])
    parts = [{"type": "image_url", "image_url": {"url": url(each)}} for each in frames]
    messages: Any = [{"role": "user", "content": [parts[0], said[1], parts[1]]}]
    found = server.openai.chat.completions.create(model="number", messages=messages, max_tokens=4, temperature=0)
    assert found.choices[0].message.content == wanted.completion
    assert found.usage is not None
    around = 4 if reader.pictures.pictures.runs else 0
    assert found.usage.prompt_tokens == len(placed) + around + 1 + 1  # a word, and the template's
    crowded, strip = [np.zeros((60, 100, 3), np.uint8)] * 8, [np.zeros((4, 400, 3), np.uint8)]
    with server.http() as client:
        for shown, times, wrong in (
            (crowded, 2, "expected at most 8 pictures a request"),
            (strip, 1, "expected sides of at most 1 : 32"),
        ):
            images = [{"type": "image_url", "image_url": {"url": url(each)}} for each in shown]
            body = {"model": "number", "max_tokens": 2, "messages": [{"role": "user", "content": images}] * times}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 400
            assert wrong in answer.json()["error"]["message"]
        body = {"model": "animal", "prompt": "red " * 250, "images": [url(each) for each in crowded], "max_tokens": 2}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 400
        assert "tokens, as the model can read" in answer.json()["error"]["message"]


def rewritten(folder: Path, family: str, name: str, **changes: Any) -> Path:
    model = Path(MODULES[family].directory(folder / "model", family))
    values = json.loads((model / name).read_text())
    part = values["vision_config"] if name == "config.json" and not values.keys() >= changes.keys() else values
    part.update(changes)
    (model / name).write_text(json.dumps(values))
    return model


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("config.json", {"spatial_merge_size": 0}, "spatial_merge_size: expected an integer of 1 to 16, found 0"),
        ("config.json", {"patch_size": [4, 4]}, "patch_size"),
        ("config.json", {"temporal_patch_size": 9}, "temporal_patch_size: expected an integer of 1 to 8, found 9"),
        ("config.json", {"in_channels": 4}, "in_channels: expected 3, found 4"),
        ("preprocessor_config.json", {"patch_size": 8}, "expected patch_size 4, as the picture tower takes, found 8"),
        ("preprocessor_config.json", {"merge_size": 3}, "expected merge_size 2, as the picture tower takes, found 3"),
        ("preprocessor_config.json", {"temporal_patch_size": 1}, "expected temporal_patch_size 2"),
        ("preprocessor_config.json", {"max_pixels": 2**31}, "expected a size .max_pixels. of at most 1048576 pixels"),
        ("preprocessor_config.json", {"max_pixels": 2**70}, "expected a size of shortest_edge and longest_edge"),
        ("preprocessor_config.json", {"min_pixels": UNIT**2 * 99}, "expected a size of shortest_edge and longest_edge"),
        ("preprocessor_config.json", {"min_pixels": 0}, "must contain 'shortest_edge' and 'longest_edge'"),
        ("preprocessor_config.json", {"do_resize": False}, "expected a Qwen2VLImageProcessor that scales pictures"),
        ("preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"}, "Qwen2VLImageProcessor"),
    ],
)
def test_odd_settings_are_refused(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    model = rewritten(tmp_path, "qwen2_vl", name, **changes)
    content = tiny_qwen2_vl.watcher(tmp_path) | {"model": str(model)}
    with pytest.raises(CompileError, match=said):
        wp.compile(content, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("config.json", {"scale_factor": 3}, "scale_factor: expected an integer of 1 to 16 that divides .* 4 patches"),
        ("config.json", {"scale_factor": 0}, "scale_factor"),
        ("config.json", {"image_size": [16, 16]}, "vision_config.image_size: expected an integer, found"),
        ("config.json", {"num_channels": 4}, "vision_config.num_channels: expected 3, found 4"),
        ("config.json", {"patch_size": 0}, "patch_size"),
        ("preprocessor_config.json", {"do_resize": False}, "expected Idefics3ImageProcessor or SmolVLMImageProcessor"),
        ("preprocessor_config.json", {"size": {"height": 48, "width": 48}}, "expected size of a longest_edge of 1 to"),
        ("preprocessor_config.json", {"size": {"longest_edge": 4096}}, "expected sizes of 1 to 2048"),
        (
            "preprocessor_config.json",
            {"size": {"longest_edge": 272}},
            "expected a size.longest_edge of at most 256, 16",
        ),
        (
            "preprocessor_config.json",
            {"max_image_size": {"longest_edge": 24}},
            r"that makes pixels \(3, 16, 16\)",
        ),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 10**9}}, "expected sizes of 1 to 2048, found"),
        ("preprocessor_config.json", {"do_normalize": False}, "make no colour zero in all channels"),
        (
            "preprocessor_config.json",
            {"image_processor_type": "ViTImageProcessor", "size": 16},
            "expected Idefics3ImageProcessor",
        ),
    ],
)
def test_odd_settings_of_tiles_are_refused(tmp_path: Path, name: str, changes: dict[str, Any], said: str) -> None:
    model = rewritten(tmp_path, "idefics3", name, **changes)
    with pytest.raises(CompileError, match=said):
        wp.compile(tiny_tiles.watcher(tmp_path) | {"model": str(model)}, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("family", "name", "changes", "said"),
    [
        ("next_clip", "config.json", {"image_grid_pinpoints": [[28, 56]]}, "image_grid_pinpoints .*, as the model has"),
        ("next_clip", "config.json", {"vision_feature_select_strategy": "full"}, "features of a tile's 4 patches, fo"),
        ("next_clip", "preprocessor_config.json", {"image_grid_pinpoints": [[28, 50]]}, "of whole tiles of 28, 2048"),
        (
            "next_clip",
            "preprocessor_config.json",
            {"image_grid_pinpoints": [[28, 2800]]},
            "expected sizes of 1 to 2048",
        ),
        ("next_clip", "preprocessor_config.json", {"size": {"shortest_edge": 56}}, "expected one side of 1 to 2048 in"),
        ("next_clip", "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "LlavaNextImagePro"),
    ],
)
def test_odd_settings_of_packed_tiles_are_refused(
    tmp_path: Path, family: str, name: str, changes: dict[str, Any], said: str
) -> None:
    model = rewritten(tmp_path, family, name, **changes)
    with pytest.raises(CompileError, match=said):
        wp.compile(tiny_next.watcher(tmp_path, family) | {"model": str(model)}, tmp_path / "bundle")  # type: ignore[arg-type]


def test_a_directory_that_says_more_as_published_ones_do_compiles(tmp_path: Path) -> None:
    content = tiny_tiles.watcher(tmp_path, "idefics3")
    folder = Path(content["model"])
    values = json.loads((folder / "config.json").read_text())
    values["vision_config"] |= {"model_type": "idefics3", "size": {"longest_edge": 48}, "use_base_siglip": False}
    other = {"model_type": "vllama3", "_name_or_path": "", "num_key_value_heads": 1, "qk_layer_norms_perceiver": False}
    published = {
        "perceiver_config": other,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        "_name_or_path": "None",
    }
    values["text_config"] |= published | {"pixel_shuffle_factor": 2, "use_resampler": False}
    (folder / "config.json").write_text(json.dumps(values | {"pad_token_id": 128002, "vocab_size": 28}))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"processor_class": "Idefics3Processor", "video_sampling": {"fps": 1, "max_frames": 64}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_len": 4, "processor_class": "Idefics3Processor"})
    )
    wp.compile(content, tmp_path / "bundle")
    answers = set()
    for backend in BACKENDS:
        with wp.load(tmp_path / "bundle", backend=backend) as engine:
            answers.add(engine.generate("animal", "red", [frame(1)], max_new_tokens=4).completion)
    assert len(answers) == 1


def test_a_tokenizer_that_knows_no_border_is_refused(tmp_path: Path) -> None:
    content = tiny_tiles.watcher(tmp_path)
    own = tiny_llava.tokenizer()
    own.save_pretrained(content["model"])
    with pytest.raises(CompileError, match="expected a tokenizer that reads '<fake_token_around_image>' as a special"):
        wp.compile(content, tmp_path / "bundle")


@pytest.mark.parametrize("window", [0, 7, 2**20, "wide"])
def test_odd_windows_are_refused(tmp_path: Path, window: object) -> None:
    model = rewritten(tmp_path, "qwen2_5_vl", "config.json", window_size=window)
    with pytest.raises(CompileError, match="window_size"):
        wp.compile(tiny_qwen2_vl.watcher(tmp_path, "qwen2_5_vl") | {"model": str(model)}, tmp_path / "bundle")


def test_a_contest_asks_about_a_frame(bundle: wp.Bundle) -> None:
    """Random words behind a picture, which either backend takes."""
    inputs = prompt(bundle, "animal", 0)
    assert bundle.pictures is not None
    if bundle.pictures.runs is not None:
        assert inputs["pixel_values"].shape[1] == 3 * 2 * 4**2
    found = []
    for backend in BACKENDS:
        with wp.load(bundle.path, backend=backend) as engine, engine.task("animal"):
            model = engine.model("animal")
            found.append(model.logits(inputs))
            first = next(likeliest(model, inputs["input_ids"], _placed(model, inputs)))
            assert found[-1][0, -1, first] >= found[-1][0, -1].max() - 0.05
    assert all(np.abs(each - found[0]).max() < 0.05 for each in found)  # int8 rounds what a layer reads, too
