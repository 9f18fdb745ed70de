"""The task file: what it accepts, and what it says about what it doesn't."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightpager.blocks import BlockShape
from weightpager.compiler import task_file
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import AddedSpec, CalibrationSpec, RecoverSpec, TaskSpec, TrainingSpec
from weightpager.errors import CompileError, ConfigError

DOCS = Path(__file__).parents[3] / "docs" / "task-file.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("spam.train.jsonl", "spam.test.jsonl", "spam.dev.jsonl", "code.txt", "code-test.txt", "day.jsonl"):
        (tmp_path / name).touch()
    for name in ("model", "head"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path


@dataclass
class Writer:
    """Writes task files that differ from a good one."""

    folder: Path

    def __call__(self, changes: str = "", task: str = "", more: str = "") -> Path:
        path = self.folder / "tasks.yaml"
        path.write_text(
            f"model: model\n{changes}\ntasks:\n"
            "  spam:\n    kind: text-classification\n    train: spam.train.jsonl\n    eval: spam.test.jsonl\n"
            f"{task}\n{more}\n"
        )
        return path


@pytest.fixture
def write(folder: Path) -> Writer:
    return Writer(folder)


def test_defaults(write: Writer, folder: Path) -> None:
    parsed = task_file.load(write())
    assert parsed.block == BlockShape(16, 32)
    assert (parsed.dtype, parsed.sparsity, parsed.alignment, parsed.saliency) == ("int4", None, 0.5, "gradient")
    assert (parsed.page, parsed.transitions) == (None, None)
    assert (parsed.calibration.items, parsed.calibration.max_length, parsed.calibration.batch) == (256, 64, 32)
    assert (parsed.training.steps, parsed.training.learning_rate, parsed.training.seed) == (360, 3e-4, 0)
    spam = parsed.tasks["spam"]
    assert spam.columns == ("text", "label")
    assert parsed.sparsity_of("spam") == 0.3
    trained = parsed.model_copy(update={"recover": parsed.recover.model_copy(update={"method": "finetune"})})
    assert trained.sparsity_of("spam") == 0.75
    assert parsed.max_length_of("spam") == 64
    assert parsed.model == folder / "model"
    assert spam.train == folder / "spam.train.jsonl"


def test_everything(write: Writer, folder: Path) -> None:
    changes = (
        "block: 32x16\ndtype: float32\nsparsity: 0\nalignment: inf\nsaliency: gradient\npage: 64KiB\n"
        "transitions: day.jsonl\ncalibration: {items: 8, max_length: 32, batch: 4}\n"
        "training: {steps: 5, learning_rate: 1e-5, head_learning_rate: 0.01, batch: 2, seed: 3}"
    )
    keys = ("sparsity: 0.75", "validation: spam.dev.jsonl", "text: body", "label: kind", "head: head", "items: 9")
    task = "\n".join("    " + key for key in keys)
    more = "  code: {kind: language-modeling, train: code.txt, eval: code-test.txt, max_length: 256}"
    parsed = task_file.load(write(changes, task, more))
    assert parsed.block == BlockShape(32, 16)
    assert parsed.alignment == float("inf")
    assert parsed.page == 65536
    assert parsed.transitions == folder / "day.jsonl"
    assert parsed.training.learning_rate == 1e-5
    spam = parsed.tasks["spam"]
    assert (*spam.columns, spam.head, spam.items) == ("body", "kind", folder / "head", 9)
    assert parsed.sparsity_of("spam") == 0.75
    assert parsed.sparsity_of("code") == 0
    assert parsed.max_length_of("code") == 256
    assert list(parsed.tasks) == ["spam", "code"]


def test_token_tasks_have_their_own_column_names(write: Writer) -> None:
    path = write()
    path.write_text(path.read_text().replace("text-classification", "token-classification"))
    spam = task_file.load(path).tasks["spam"]
    assert spam.columns == ("tokens", "tags")


def test_is_frozen(write: Writer) -> None:
    parsed = task_file.load(write())
    with pytest.raises(ValueError, match="frozen"):
        parsed.sparsity = 0.5


def test_merge_keys_work(write: Writer) -> None:
    more = "  ham:\n    <<: *shared\n    sparsity: 0.6"
    path = write(more=more)
    path.write_text(path.read_text().replace("  spam:\n", "  spam: &shared\n    sparsity: 0.5\n"))
    parsed = task_file.load(path)
    assert (parsed.sparsity_of("spam"), parsed.sparsity_of("ham")) == (0.5, 0.6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("blok: 16x32", "blok: unknown key; did you mean 'block'?"),
        ("private_blocks: 0.1", "private_blocks: unknown key; it belongs to 'recover'"),
        ("steps: 3", "steps: unknown key; it belongs to 'training' or 'recover'"),
        ("max_length: 3", "max_length: unknown key; it belongs to a task or 'calibration'"),
        ("training: {dtype: int8}", "training.dtype: unknown key; it belongs to the file itself"),
        ("xyz: 1", "xyz: unknown key; the keys here are model, block"),
        ("block: 16x33", "block cols: expected a power of two from 8 to 256, got 33"),
        ("block: big", "block: expected ROWSxCOLS such as 16x32, got 'big'"),
        ("dtype: int9", "dtype: expected 'bfloat16', 'float32', 'int8' or 'int4', found 'int9'; did you mean 'int8'?"),
        ("sparsity: 1", "sparsity: expected less than 1, found 1"),
        ("sparsity: -0.1", "sparsity: expected at least 0, found -0.1"),
        ("sparsity: half", "sparsity: expected a number, found 'half'"),
        ("sparsity: '0.5'", "sparsity: expected a number, found '0.5'"),
        ("sparsity: .nan", "sparsity: expected"),
        ("alignment: -1", "alignment: expected at least 0, found -1"),
        ("alignment: .nan", "alignment: expected at least 0, found nan"),
        ("saliency: gradients", "did you mean 'gradient'?"),
        ("saliency: block-obs", "saliency: expected 'gradient', found 'block-obs'"),
        ("page: 5000", "page: expected auto or a power of two from 4KiB to 256MiB, found 5000"),
        ("page: tiny", "page: expected auto or a size such as 64KiB, found 'tiny'"),
        ("page: true", "page: expected auto or"),
        ("block: 256x256\npage: 4096", "page: expected at least one int4 block of 33280 bytes, found 4096"),
        (
            "fit: 8GiB\nblock: 64x64\npage: 4096",
            "page: expected at least one bfloat16 block of 8192 bytes, which fit may choose, found 4096",
        ),
        ("transitions: nowhere.jsonl", "transitions: expected a file, found none at"),
        ("transitions: model", "transitions: expected a file, found none at"),
        ("calibration: {items: 0}", "calibration.items: expected at least 1, found 0"),
        ("calibration: {items: 1.5}", "calibration.items: expected a whole number, found 1.5"),
        ("calibration: {items: true}", "calibration.items: expected a whole number, found True"),
        ("calibration: 3", "calibration: expected keys and values, found 3"),
        ("training: {step: 3}", "training.step: unknown key; did you mean 'steps'?"),
        ("training: {learning_rate: 0}", "training.learning_rate: expected more than 0, found 0"),
        ("sparsity: 0.1\nsparsity: 0.2", "line 3, column 1: the key 'sparsity' is there twice"),
        ("no: 1", "line 2, column 1: the key 'no' is no text: quote it"),
        ("? !!str [a]\n: 1", "line 2, column 3: the key [...] is no text: quote it"),
        ("transitions: 2024-02-30", "line 2, column 14: '2024-02-30' is no timestamp; quote it if it is text"),
        ("sparsity: 0x_", "line 2, column 11: '0x_' is no int; quote it if it is text"),
        ("sparsity: 1" + ":00" * 200 + ".0", "is no float; quote it if it is text"),
        ("reorder: !!bool perhaps", "line 2, column 10: 'perhaps' is no bool; quote it if it is text"),
        ("calibration: {items: !!timestamp one}", "line 2, column 22: 'one' is no timestamp; quote it"),
        ("sparsity: [", "expected a YAML file: line"),
        ("sparsity: !!python/object:os.system x", "expected a YAML file"),
    ],
)
def test_says_what_is_wrong(write: Writer, changes: str, expected: str) -> None:
    path = write(changes)
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        task_file.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not re.search(r"pydantic|Input should|TaskFile|errors\.pydantic", str(caught.value))


HUGE = "0x" + "F" * 5000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (f"training: {{steps: {HUGE}}}", "training.steps: expected less than 2147483648, found a number of thousands"),
        (f"block: {HUGE}", "block: expected ROWSxCOLS such as 16x32, got 'a number of thousands of digits'"),
        (f"page: {HUGE}", "page: expected auto or a size such as 64KiB, found a number of thousands of digits"),
        ("reorder: *j", "reorder: expected"),
        ("dtype: *j", "dtype: expected 'bfloat16'"),
        ("block: *j", "block: expected ROWSxCOLS such as 16x32, got '[[[[...], [...]"),
        ("fit: *j", "fit: expected a size such as 8MiB, found [[[[...], [...]"),
        ("? *j\n: 1", "the key [...] is no text: quote it"),
        ("sparsity: !!int {=: x, y: *j}", "{...} is no int; quote it if it is text"),
    ],
)
def test_of_values_without_end_a_message_shows_the_beginning(write: Writer, changes: str, expected: str) -> None:
    lists = "b: &b [x]\n" + "".join(
        f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n" for before, this in pairwise("bcdefghij")
    )
    with pytest.raises(ConfigError, match=re.escape(expected)) as caught:
        task_file.load(write(lists + changes))
    assert max(map(len, str(caught.value).splitlines())) < 1000


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ('    validation: "\\ud83d"', "tasks.spam.validation: expected a path of Unicode text"),
        ('    text: "\\udcff"', r"tasks.spam.text: expected Unicode text without lone surrogates, found '\udcff'"),
        ("    sparcity: 0.5", "tasks.spam.sparcity: unknown key; did you mean 'sparsity'?"),
        ("    validation: gone.jsonl", "tasks.spam.validation: expected a file, found none at"),
        ("    validation: 3", "tasks.spam.validation: expected a path, found 3"),
        ("    validation: ./spam.train.jsonl", "tasks.spam: validation must be held out"),
        ("    head: nowhere", "tasks.spam.head: expected a model directory, found none at"),
        ("    text: ''", "tasks.spam.text: expected text that is not empty, found ''"),
        ("    max_length: 2", "tasks.spam.max_length: expected at least 8, found 2"),
        ("    max_length: 1048577", "tasks.spam.max_length: expected at most 1048576, found 1048577"),
    ],
)
def test_says_what_is_wrong_in_a_task(write: Writer, task: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        task_file.load(write(task=task))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("  Code: {kind: language-modeling, train: code.txt, eval: code-test.txt}", "tasks.Code: expected a name of"),
        (
            "  _code: {kind: language-modeling, train: code.txt, eval: code-test.txt}",
            "tasks._code: expected a name of lower-case letters and digits, then '_', '.' and '-' too",
        ),
        (
            "  code: {kind: language-modelling, train: code.txt, eval: code-test.txt}",
            "did you mean 'language-modeling'?",
        ),
        ("  code: {kind: language-modeling, train: code.txt}", "tasks.code: eval: expected a file, found nothing"),
        ("  code: {kind: language-modeling, train: code.txt, eval: code-test.txt, label: x}", "label makes no sense"),
        ("  code:", "tasks.code: expected keys and values, found nothing"),
    ],
)
def test_says_what_is_wrong_between_tasks(write: Writer, more: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        task_file.load(write(more=more))


def test_every_error_is_named_at_once(write: Writer) -> None:
    with pytest.raises(ConfigError) as caught:
        task_file.load(write("sparsity: 2\ndtype: int9", "    items: 0"))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(("count", "fine"), [(64, True), (65, False)])
def test_at_most_64_tasks(folder: Path, count: int, fine: bool) -> None:
    task = {"kind": "language-modeling", "train": "code.txt", "eval": "code-test.txt"}
    content = {"model": "model", "tasks": {f"task{number}": task for number in range(count)}}
    if fine:
        assert len(task_file.from_dict(content, folder).tasks) == count
    else:
        with pytest.raises(ConfigError, match="task file: tasks: expected at most 64 entries, found 65"):
            task_file.from_dict(content, folder)


def test_wishes(write: Writer) -> None:
    assert task_file.load(write("max_switch: 8MiB")).max_switch == 8 << 20
    assert task_file.load(write("accuracy_loss: 0.5")).accuracy_loss == 0.5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            "max_switch: 8MiB\naccuracy_loss: 0.5",
            "one of alignment, max_switch and accuracy_loss, found max_switch and",
        ),
        ("max_switch: 8MiB\nalignment: 0.5", "one of alignment, max_switch and accuracy_loss, found alignment and"),
        ("max_switch: much", "max_switch: expected a size such as 8MiB, found 'much'"),
        ("accuracy_loss: 0", "accuracy_loss: expected more than 0, found 0"),
    ],
)
def test_wishes_that_make_no_sense(write: Writer, changes: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        task_file.load(write(changes))


def test_a_wish_of_the_command_line_replaces_the_files_own(write: Writer) -> None:
    stated = task_file.load(write("alignment: 2\nsparsity: 0.5\nblock: 8x16"))
    found = task_file.restated(stated, max_switch="1MiB")
    assert (found.max_switch, found.sparsity, found.block) == (2**20, 0.5, BlockShape(8, 16))
    assert found.tasks == stated.tasks
    assert task_file.restated(found, accuracy_loss=0.5).max_switch is None
    assert task_file.restated(stated, max_switch=None) is stated
    with pytest.raises(ConfigError, match="command line: expected one of"):
        task_file.restated(stated, max_switch="1MiB", accuracy_loss=0.5)


def test_a_file_that_cannot_be_read_is_named(write: Writer, folder: Path) -> None:
    (folder / "model" / "model.safetensors").mkdir()
    with pytest.raises(CompileError, match=r"model\.safetensors: cannot be read: Is a directory"):
        compile_identity(task_file.load(write()))


def test_at_least_one_task(folder: Path) -> None:
    with pytest.raises(ConfigError, match="task file: tasks: expected at least 1 entry, found 0"):
        task_file.from_dict({"model": "model", "tasks": {}}, folder)


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        (["chrF"], r".*\bchrf\b.*, found 'chrF'; did you mean 'chrf'\?"),
        ([], "expected at least 1 entry, found 0"),
        ("chrf", r"expected a list, such as \[chrf\], found 'chrf'"),
    ],
)
def test_metrics_that_are_wrong_are_told_of_once(folder: Path, metrics: object, problem: str) -> None:
    files = {"train": "spam.train.jsonl", "eval": "spam.test.jsonl"}
    task = {"kind": "text-generation", **files, "metrics": metrics}
    with pytest.raises(ConfigError) as refused:
        task_file.from_dict({"model": "model", "tasks": {"spam": task}}, folder)
    (line,) = str(refused.value).splitlines()
    assert re.fullmatch(rf"task file: tasks\.spam\.metrics(\.0)?: {problem}", line)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read: No such file"):
        task_file.load(tmp_path / "gone.yaml")


@pytest.mark.parametrize("content", [b"", b"- a\n- b\n", b"just text", b"\xff\xfe\x00"])
def test_a_file_that_is_no_task_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"tasks\.yaml: expected"):
        task_file.load(path)


def test_a_hub_id_is_explained(write: Writer) -> None:
    path = write()
    path.write_text(path.read_text().replace("model: model", "model: owner/name"))
    with pytest.raises(ConfigError, match="a hub id must be downloaded first"):
        task_file.load(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("model")
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
any_key = st.sampled_from([*TaskFile.model_fields, "other"])


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(any_key, anything), task=anything)
def test_anything_else_is_a_config_error(folder: Path, content: dict[str, Any], task: Any) -> None:
    content |= {"model": "model", "tasks": {"spam": task}}
    with pytest.raises(ConfigError):
        task_file.from_dict(content, folder)


def test_the_documented_file_parses(folder: Path) -> None:
    (block,) = re.findall(r"```yaml\n(model:.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "day.trace.jsonl").touch()
    (folder / "tasks.yaml").write_text(block.replace("models/minilm", "model"))
    parsed = task_file.load(folder / "tasks.yaml")
    plain = task_file.from_dict({"model": folder / "model", "tasks": {"code": parsed.tasks["code"]}}, folder)
    changed = {name for name in TaskFile.model_fields if getattr(parsed, name) != getattr(plain, name)}
    assert changed == {"sparsity", "transitions", "tasks"}, "the example states the defaults"
    assert parsed.sparsity == plain.sparsity_of("code")


def test_every_key_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    sections = (TaskFile, TaskSpec, AddedSpec, CalibrationSpec, TrainingSpec, RecoverSpec)
    keys = {key for model in sections for key in model.model_fields} - {"added"}  # which stand among the tasks
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []
