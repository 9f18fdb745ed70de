"""The documentation's commands and code run as they are printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from command import run

import tiny
import weightpager as wp

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for kind, code in fences if kind == language]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's task file finds what it names, on a tiny model."""
    folder = tmp_path_factory.mktemp("readme")
    tiny.bert(folder / "all-MiniLM-L6-v2")
    for name, classes in (("spam", {"spam": ["red"], "ham": ["cow"]}), ("topic", {"a": ["sun"], "b": ["one"]})):
        made = tiny.classification(folder, name, classes)
        Path(made["eval"]).rename(folder / f"{name}.test.jsonl")
    (folder / "tasks.yaml").write_text(blocks("yaml")[0] + "training: {steps: 4, batch: 4}\nblock: 8x8\npage: 4KiB\n")
    more = {"model": "all-MiniLM-L6-v2", "training": {"steps": 4, "batch": 4}}
    tasks = {"animal": tiny.classification(folder, "animal", {"cat": ["cat"], "dog": ["dog"]})}
    (folder / "more.yaml").write_text(yaml.safe_dump(more | {"tasks": tasks}))
    visits = (json.dumps({"task": ("spam", "topic")[number % 2], "time": number}) for number in range(20))
    (folder / "day.jsonl").write_text("\n".join(visits))
    return folder


def test_the_python_example_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(blocks("python")[0].replace("assistant.bundle", "python.bundle"), "README.md", "exec"), {})


def test_the_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    commands = [line for block in blocks("") for line in block.splitlines() if line.startswith("weightpager ")]
    assert len(commands) >= 7
    for command in commands:
        if "copy.bundle" in command:
            shutil.copytree("assistant.bundle", "copy.bundle")
        done = run(capsys, monkeypatch, *shlex.split(command, comments=True)[1:])
        assert done.code == 0, f"{command}: {done.err}"


@pytest.mark.parametrize(("page", "count"), [("runtime.md", 3), ("prediction.md", 3), ("own-model.md", 3)])
def test_the_examples_of_a_page_run(workplace: Path, monkeypatch: pytest.MonkeyPatch, page: str, count: int) -> None:
    monkeypatch.chdir(workplace)
    if not Path("page.bundle").exists():
        wp.compile("tasks.yaml", out="page.bundle")
    examples = blocks("python", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(examples) == count
    names = {"wp": wp}
    for code in examples:
        exec(compile(code.replace("assistant.bundle", "page.bundle"), page, "exec"), names)


def test_the_commands_of_sizing_run(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    if not Path("page.bundle").exists():
        wp.compile("tasks.yaml", out="page.bundle")
    commands = [line for block in blocks("", (ROOT / "docs" / "sizing.md").read_text()) for line in block.splitlines()]
    assert len(commands) == 3
    for command in commands:
        done = run(capsys, monkeypatch, *shlex.split(command.replace("assistant.bundle", "page.bundle"))[1:])
        assert done.code == 0, f"{command}: {done.err}"


def test_troubleshooting_quotes_messages_that_exist() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\*\*`([^`]+)`\*\*", text, re.MULTILINE)
    assert len(quoted) > 20
    assert [message for message in quoted if message not in source] == []


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def links(page: Path) -> list[tuple[Path, str]]:
    """Files of ours that a page links to, and the heading in each; "" for none."""
    targets = re.findall(r"\]\(\s*([^)\s]+)\s*\)", page.read_text(encoding="utf-8"))
    cut = [target.partition("#") for target in targets if "://" not in target]
    return [((page.parent / path).resolve() if path else page, heading) for path, _, heading in cut]


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    assert sum(len(links(page)) for page in pages()) > 50
    for page in pages():
        for target, heading in links(page):
            assert target.exists(), f"{page.name}: {target}"
            assert not heading or heading in anchors(target), f"{page.name}: {target.name}#{heading}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [target for target, _ in links(page) if target.suffix == ".md"]
    assert set(pages()) - reached == set()


def test_the_index_of_decisions_has_their_titles() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for record in sorted(folder.glob("0*.md")):
        number, title = record.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").split(". ", 1)
        assert int(number) == int(record.name[:4])
        line = f"{number}. [{title}]({record.name})"
        assert line in index.splitlines(), f"docs/decisions/README.md: expected the line {line}"
