"""A damaged or hostile bundle gets one of our errors: never a crash, a wild read, or a wrong answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from torch import Tensor

from benchmarks.fuzz.sealing import rewrite_arrays, rewrite_file, rewrite_manifest, rewrite_tensors
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.page_file import FILE as PAGE_INDEX
from weightpager.bundle.format.placement import FILE as PLACEMENT
from weightpager.errors import BundleError, BundleFormatError

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def copy(assistant_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))


def files(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def refused(bundle: Path) -> str:
    with pytest.raises(BundleError) as error:
        Bundle.open(bundle)
    return str(error.value)


def test_a_bundle_as_written_is_well(assistant_bundle: Path) -> None:
    result = verify(assistant_bundle)
    assert result.problems == ()
    assert result.pages > 0
    assert result.files >= 12


@pytest.mark.parametrize(
    ("name", "order", "wrong"),
    [
        ("{first}:0", [0, 1], "an axis of"),
        ("{first}:2", [0, 1], "an axis of"),
        ("anything:0", [0, 0], "each of 0 to 1 once"),
        ("anything:0", [0, 2], "each of 0 to 1 once"),
        ("anything:0", [[0, 1]], "int32 [size]"),
        ("anything", [0, 1], "TENSOR:AXIS"),
    ],
)
def test_a_wrong_permutation_is_refused(copy: Path, name: str, order: list[Any], wrong: str) -> None:
    first = f"{Bundle.open(copy).manifest.weights[0].name}.weight"
    content = save({name.format(first=first): np.array(order, np.int32)})
    rewrite_file(copy, "permutations.safetensors", content)
    assert wrong in refused(copy)


@pytest.mark.slow
@relaxed
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(assistant_bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path.relative_to(assistant_bundle) for path in files(assistant_bundle)]))
    content = bytearray((assistant_bundle / path).read_bytes())
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    copy = tmp_path / "flipped.bundle"
    shutil.copytree(assistant_bundle, copy, dirs_exist_ok=True)
    (copy / path).write_bytes(content)
    assert verify(copy).problems, f"bit {bit} of {path}"


@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_named(copy: Path, keep: float) -> None:
    for path in files(copy):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        problems = verify(copy).problems
        assert any(path.stem in problem for problem in problems), path
        path.write_bytes(content)
    assert verify(copy).problems == ()


def test_a_missing_file_is_named(copy: Path) -> None:
    for path in files(copy):
        content = path.read_bytes()
        path.unlink()
        assert any(path.name in problem and "expected" in problem for problem in verify(copy).problems), path
        path.write_bytes(content)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "weightpager compile" in refused(tmp_path / "nothing")
    assert "manifest.json" in refused(tmp_path)
    (tmp_path / "file").touch()
    assert "found a file" in refused(tmp_path / "file")
    (tmp_path / "link").symlink_to("nothing")
    assert "found a link to nothing" in refused(tmp_path / "link")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.update(format="zip"), "format"),
        (lambda m: m.update(version=4), "version"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.pop("weights"), "weights"),
        (lambda m: m.update(weights=[]), "weights"),
        (lambda m: m.update(block="16x33"), "block"),
        (lambda m: m.update(block="1000000x1000000"), "block"),
        (lambda m: m.update(page_bytes=0), "page_bytes"),
        (lambda m: m.update(page_bytes=5000), "page_bytes"),
        (lambda m: m.update(page_bytes=1 << 40), "page_bytes"),
        (lambda m: m.update(page_bytes="4096"), "page_bytes"),
        (lambda m: m.update(page_files=[-1]), "page_files"),
        (lambda m: m.update(page_files=[1 << 30, 1 << 30]), "locations"),
        (lambda m: m.update(page_files=[]), "page-index"),
        (lambda m: m["page_files"].append(1), "page-index"),
        (lambda m: m.update(layers=1), "layers"),
        (lambda m: m["weights"][0].update(out_features=1 << 40), "out_features"),
        (lambda m: m["weights"][0].update(out_features=8), "placement.safetensors: blocks"),
        (lambda m: m["weights"][0].update(out_features=1 << 24), "rows of blocks"),
        (lambda m: m["weights"][0].update(out_features=1 << 24, in_features=1 << 24), "2^32 blocks in a layer"),
        (lambda m: m["weights"][0].update(out_features=1 << 10, in_features=1 << 24), "blocks for so many pages"),
        (lambda m: m.update(version=1), "version: expected 3; compile the bundle again"),
        (lambda m: m["weights"][0].update(layer=2), "layer"),
        (lambda m: m["weights"].append(m["weights"][0]), "weight names"),
        (lambda m: m["tasks"].append(m["tasks"][0]), "task names"),
        (lambda m: m["tasks"][0].update(name="../../etc"), "name"),
        (lambda m: m["tasks"][0].update(kind="telepathy"), "kind"),
        (lambda m: m["tasks"][0].update(sparsity=-1.0), "sparsity"),
        (lambda m: m.update(transitions=[[1.0]]), "transition"),
        (lambda m: m["files"].update({"../outside": {"bytes": 1, "blake3": "0" * 64}}), "files"),
        (lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "blake3": "0" * 64}}), "files"),
        (lambda m: m["files"].pop("page-index.safetensors"), "page-index"),
        (lambda m: m["files"]["page-index.safetensors"].update(bytes=1 << 40), "page-index"),
        (lambda m: m["files"]["page-index.safetensors"].update(bytes=-5), "bytes"),
    ],
)
def test_a_wild_manifest_is_refused_by_name(copy: Path, change: Callable[[dict[str, Any]], object], field: str) -> None:
    rewrite_manifest(copy, change)
    assert field in refused(copy)


def test_a_manifest_that_is_no_json_is_refused(copy: Path) -> None:
    text = b'{"format": '
    (copy / "manifest.json").write_bytes(text)
    (copy / "manifest.blake3").write_text(blake3(text).hexdigest() + "\n")
    assert "manifest.json" in refused(copy)


def _used_twice(arrays: dict[str, np.ndarray]) -> None:
    """A task uses a block in two places."""
    places = np.argwhere(arrays["blocks"] != np.iinfo(arrays["blocks"].dtype).max)[:2]
    arrays["blocks"][tuple(places[1])] = arrays["blocks"][tuple(places[0])]
    for place in places @ [arrays["blocks"].shape[1], 1]:
        arrays["used"][0, place // 8] |= 1 << place % 8


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays["blocks"].fill(2**16 - 2),
        lambda arrays: arrays["blocks"].fill(2**16 - 1),
        lambda arrays: arrays["used"].fill(0),
        lambda arrays: arrays["used"].fill(255),
        lambda arrays: arrays["used"].__ixor__(np.uint8(1)),
        _used_twice,
        lambda arrays: arrays.popitem(),
        lambda arrays: arrays.update(surprise=np.zeros(3, np.int32)),
        lambda arrays: arrays.update(blocks=arrays["blocks"][:-1]),
        lambda arrays: arrays.update(used=arrays["used"][:-1]),
        lambda arrays: arrays.update({name: array.astype(np.int64) for name, array in arrays.items()}),
    ],
)
def test_wild_block_tables_are_refused(copy: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    rewrite_arrays(copy, PLACEMENT, change)
    assert any(f"{name}: expected" in refused(copy) for name in ("blocks", "used", "used.0", "tensors", "signatures"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("signatures", lambda arrays: arrays["signatures"].__ixor__(np.uint64(1))),
        ("signatures", lambda arrays: arrays["signatures"].__ior__(np.uint64(1 << 63))),
        ("layers", lambda arrays: arrays["layers"].__ixor__(np.int32(-1))),
        ("ids", lambda arrays: arrays.update(ids=arrays["ids"][:-1])),
        ("tensors", lambda arrays: arrays.pop("ids")),
    ],
)
def test_a_wild_page_index_is_refused(copy: Path, name: str, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    rewrite_arrays(copy, PAGE_INDEX, change)
    assert name in refused(copy)


def test_garbage_in_place_of_tensors_is_refused(copy: Path) -> None:
    rewrite_file(copy, PLACEMENT, b"\xff" * 100)
    assert "safetensors" in refused(copy)


def test_a_header_that_promises_the_moon_is_refused(copy: Path) -> None:
    header = json.dumps({"x": {"dtype": "I32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    rewrite_file(copy, PLACEMENT, len(header).to_bytes(8, "little") + header)
    assert "safetensors" in refused(copy)


def test_code_from_elsewhere_is_refused(copy: Path) -> None:
    import weightpager as wp

    config = json.loads((copy / "model/config.json").read_bytes())
    rewrite_file(copy, "model/config.json", json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}).encode())
    with pytest.raises(BundleFormatError, match="auto_map"):
        wp.Engine.from_pretrained(copy)


def test_code_from_elsewhere_is_refused_by_export_and_verify_too(copy: Path, tmp_path: Path) -> None:
    from weightpager.backends.torch.export import export_task

    config = json.loads((copy / "model/config.json").read_bytes()) | {"model_type": "evil"}
    rewrite_file(copy, "model/config.json", json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil"}}).encode())
    with pytest.raises(BundleFormatError, match="auto_map"):
        export_task(Bundle.open(copy), "animal", tmp_path / "out")
    assert "auto_map" in verify(copy).problems[0]


def _drop_bias(tensors: dict[str, Tensor]) -> None:
    tensors.pop("base_model.encoder.layer.0.attention.self.query.bias")


def _shorten_bias(tensors: dict[str, Tensor]) -> None:
    name = "base_model.encoder.layer.0.attention.self.query.bias"
    tensors[name] = tensors[name][:-1].clone()


def _halve(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: tensor.half() for name, tensor in tensors.items()})


def _halve_table(tensors: dict[str, Tensor]) -> None:
    name = "base_model.embeddings.word_embeddings.weight"
    tensors[name] = tensors[name].half()


def _count_in_table(tensors: dict[str, Tensor]) -> None:
    name = "base_model.embeddings.word_embeddings.weight"
    tensors[name] = tensors[name].view(torch.int16)


@pytest.mark.parametrize("change", [_drop_bias, _shorten_bias, _halve, _halve_table, _count_in_table])
def test_parameters_that_do_not_make_up_the_module_are_refused(
    copy: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]
) -> None:
    import weightpager as wp
    from weightpager.backends.torch.export import export_task

    rewrite_tensors(copy, "resident.safetensors", change)
    with pytest.raises(BundleFormatError, match="expected"):
        export_task(Bundle.open(copy), "animal", tmp_path / "out")
    with pytest.raises(BundleFormatError, match="expected"), wp.Engine.from_pretrained(copy) as engine:
        engine.activate("animal")


def test_a_file_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    import weightpager as wp

    (copy / "model/tokenizer.model").write_bytes(b"surprise")
    with pytest.raises(BundleFormatError, match="extra file"):
        wp.Engine.from_pretrained(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 32},
        {"model_type": "nonsense"},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 10**9},
        {"max_position_embeddings": 10**13},
        {"num_attention_heads": 0},
        {"num_attention_heads": -1},
        {"num_attention_heads": [4, 4]},
        {"num_attention_heads": [2, 0]},
        {"num_attention_heads": [4] * 65},
        {"num_attention_heads": []},
        {"num_hidden_layers": 4000},
        {"num_labels": 2**24},
        {"chunk_size_feed_forward": 3},
        {"output_hidden_states": "x"},
        {"return_dict": False},
        {"return_dict": None},
        {"attn_implementation": "somebody/kernel"},
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(copy: Path, change: dict[str, object]) -> None:
    import weightpager as wp

    config = json.loads((copy / "model/config.json").read_bytes())
    rewrite_file(copy, "model/config.json", json.dumps(config | change).encode())
    with pytest.raises(BundleFormatError), wp.Engine.from_pretrained(copy) as engine:
        engine.activate("animal")


def change_json(bundle: Path, name: str, change: dict[str, Any]) -> None:
    """Seal a bundle with other settings."""
    path = bundle / name
    values = json.loads(path.read_bytes()) if path.is_file() else {}
    rewrite_file(bundle, name, json.dumps(values | change).encode())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"keypoint_detector_config": {"trust_remote_code": True, "_name_or_path": "evil/repo"}}, "keypoint_detector"),
        ({"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation_internal"),
        ({"experts_implementation": "evil/kernel"}, "experts_implementation"),
        ({"model_type": "superglue"}, "model_type"),
        ({"to_dict": 7}, "to_dict"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"n_layers": 10**9}, "n_layers"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "text_config.num_hidden_layers"),
        ({"original_max_position_embeddings": {"a": 1}}, "original_max_position_embeddings"),
        ({"tokenizer_class": "AutoModel"}, "tokenizer_class"),
    ],
)
def test_a_hostile_configuration_is_refused_at_open(copy: Path, change: dict[str, Any], field: str) -> None:
    import weightpager as wp

    change_json(copy, "model/config.json", change)
    with pytest.raises(BundleFormatError, match=field), wp.Engine.from_pretrained(copy) as engine:
        engine.tokenizer()
    if field not in ("model_type", "to_dict", "tokenizer_class"):  # which need transformers
        assert field in verify(copy).problems[0]


def test_more_layers_than_weights_are_not_built(copy: Path) -> None:
    import weightpager as wp

    change_json(copy, "model/config.json", {"num_hidden_layers": 512})
    with wp.Engine.from_pretrained(copy) as engine, pytest.raises(BundleFormatError, match="far more parts than"):
        engine.activate("animal")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"eos_token_id": {}}, "eos_token_id"),
        ({"temperature": "hot", "do_sample": True}, "temperature"),
        ({"top_k": -3, "do_sample": True}, "top_k"),
        ({"pad_token_id": 16}, "pad_token_id: expected one of the model's 16 words"),
    ],
)
def test_a_hostile_generation_configuration_is_refused_at_open(
    writer_bundle: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    import weightpager as wp

    copy = Path(shutil.copytree(writer_bundle, tmp_path / "copy.bundle"))
    change_json(copy, "model/generation_config.json", change)
    with pytest.raises(BundleFormatError, match=field):
        wp.Engine.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"size": "x"}, "size"),
        ({"size": {"height": 10**6, "width": 16}}, "expected sizes of 1 to 2048"),
        ({"size": 4096}, "expected sizes of 1 to 2048"),
        ({"image_mean": [0.5, 0.5]}, "image processor"),
        ({"image_std": {}}, "image_std"),
        ({"preprocess": 3}, "image processor"),
        ({"return_tensors": 5, "_preprocess": [1]}, "image processor"),
        ({"image_processor_type": "BertModel"}, "image_processor_type"),
        ({"resample": "bilinear"}, "resample"),
    ],
)
def test_a_hostile_image_processor_is_refused_before_it_reads_an_image(
    camera_bundle: Path, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    from weightpager.backends.torch.architecture import image_reader

    copy = Path(shutil.copytree(camera_bundle, tmp_path / "copy.bundle"))
    change_json(copy, "model/preprocessor_config.json", change)
    with pytest.raises(BundleFormatError, match=field):
        image_reader(Bundle.open(copy))
