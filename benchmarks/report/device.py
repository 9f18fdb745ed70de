"""The table of whole processes on a device: ours beside what people run there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.device.measured import Figure, Measured, Row, Section
from benchmarks.report.tables import size, table

_TITLES = {
    "native": "weightpager, native code",
    "native_tasks": "weightpager, native code, its tasks that classify texts, one after the other",
    "native_all_blocks": "weightpager, native code, all blocks in int4, task after task",
    "torch": "weightpager, torch",
    "onnx_int8": "ONNX Runtime, int8, a head a task",
    "onnx_float32": "ONNX Runtime, float32, a head a task",
    "onnx_sessions_int8": "ONNX Runtime, int8, a session a task",
    "onnx_sessions_float32": "ONNX Runtime, float32, a session a task",
}
_MODELS = {
    "half.bundle": "half of SmolLM2's blocks in int4",
    "all.bundle": "all of SmolLM2's blocks in int4",
    "half-16k.bundle": "half of the blocks of SmolLM2 with 16,384 tokens in int4",
    "all-16k.bundle": "all of these blocks in int4",
    "SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2 in Q4_1",
    "SmolLM2-135M-Instruct.Q4_1-as-Q4_0.gguf": "SmolLM2 in Q4_0",
    "ours_int4-0.14-closed-form.bundle": "half of the language model's blocks in int4",
    "ours_int4-0.07-closed-form.bundle": "a quarter of them",
    "all_blocks_int4-0.281-closed-form.bundle": "all of them",
    "qwen2-vl-half.bundle": "half of the blocks of Qwen2-VL-2B's shape in int4",
    "qwen2-vl-all.bundle": "all of them",
    "qwen2-1.5b-as-Q4_0.gguf": "its language model's shape in Q4_0",
    "own_tower_int4-0.14-closed-form.bundle": "half of them, and a picture tower for each task",
}
"""What the files are that the page's command names."""

_SPEEDS = {
    "ms_1x16": "1 × 16 tokens {} ms",
    "ms_16x64": "16 × 64 tokens {} ms",
    "decode_per_s": "decodes {} tokens a second",
    "decode_after_prefill_per_s": "behind a long prompt {}",
    "prefill_per_s": "reads {}",
    "decode_plain_per_s": "without an adapter {}",
    "ms_swap": "a swap to an adapter on storage {} ms",
    "ms_swap_in_memory": "to one in memory {} ms",
    "ms_1": "one picture {} ms",
    "ms_16": "16 pictures {} ms",
    "ms_first_token": "a picture and the first token {} ms",
    "ms_seen_first_token": "about one that was seen {} ms",
    "ms_decode": "each further token {} ms",
    "ms_first_question": "the first question about a frame {} ms",
    "ms_later_question": "each further one {} ms",
    "ms_frame": "all questions about it {} ms",
    "runs_of_the_tower": "for which the tower runs {} times",
    "ms_later_first_token": "a further question's first token {} ms",
    "ms_text_first_token": "as long a text's, without a switch, {} ms",
    "ms_switch": "a switch {} ms",
    "mib_switch": "which reads {} MiB",
}
_ORDER: tuple[Section, ...] = ("texts", "decoder", "images", "questions", "adapters", "pictures of any size")

_MEMORY = ("peak_bytes_of_texts", "peak_bytes_short", "peak_bytes_of_pictures")
"""Before the long batches or prompts; ``peak_bytes`` is behind them."""


def processes(measured: Mapping[Section, Measured]) -> str:
    """A line for each process, by what it did; empty where nothing was measured."""
    installs = measured["install"].rows if "install" in measured else {}
    columns = 6 if installs else 5
    lines = [
        [section, _title(section, name), _memory(row), _start(row), _speed(row), _install(installs, name)][:columns]
        for section in _ORDER
        if section in measured
        for name, row in measured[section].rows.items()
    ]
    header = [
        "",
        "process",
        "most memory; most with long inputs",
        "first output, files cached",
        "speed",
        "fetched to install",
    ]
    return table(header[:columns], lines) if lines else ""


def commands(measured: Mapping[Section, Measured]) -> list[str]:
    """How each was measured."""
    return [
        f"{section}: {found.about}. `{found.command}`, commit {found.commit}, on {found.machine.get('cpu')}, "
        f"{found.machine.get('usable_cores')} cores, load average {found.load:g}"
        for section, found in measured.items()
    ]


def _title(section: Section, name: str) -> str:
    process, _, model = name.partition(" ")
    title = _TITLES.get(process, process.rstrip(",")).removesuffix(", a head a task" if section == "images" else "\n")
    return f"{title}, {_MODELS.get(model, model)}" if model else title


def _memory(row: Row) -> str:
    before = next((row[key] for key in _MEMORY if key in row), None)
    return "; ".join(_bytes(found) for found in (before, row["peak_bytes"]) if found is not None)


def _start(row: Row) -> str:
    found = f"{seconds(row['first_output_ms'])} s{spread(row, 'first_output_ms', seconds)}"
    return f"{found}; `run` in all {seconds(row['run_ms'])} s" if "run_ms" in row else found


def _speed(row: Row) -> str:
    return ", ".join(
        text.format(short(row[key])) + spread(row, key, short) for key, text in _SPEEDS.items() if key in row
    )


def spread(row: Row, key: str, written: Callable[[Figure], str]) -> str:
    """The least and the most of a figure's runs, where they are known."""
    ends = row.get(f"{key}_spread")
    return f" ({written(ends[0])} to {written(ends[1])})" if isinstance(ends, list) else ""


def _install(installs: Mapping[str, Row], name: str) -> str:
    row = next((row for which, row in installs.items() if name.split(" ")[0].split("_")[0] == which), None)
    if row is None:
        return "–"
    return _bytes(row["bytes"]) + (", and a compiler" if _number(row["sources"]) > 0 else "")


def _bytes(value: Figure) -> str:
    return size(_number(value))


def seconds(ms: Figure) -> str:
    """Of milliseconds, as people read it."""
    return f"{_number(ms) / 1e3:.2f}"


def short(value: Figure) -> str:
    """Three digits, or all before the point."""
    number = _number(value)
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _number(value: Figure) -> float:
    assert not isinstance(value, list)
    return value
