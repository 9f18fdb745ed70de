"""The documentation's commands and code run as they are printed."""

from __future__ import annotations

import doctest
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tiny
import tiny_gguf
import weightpager as wp
from command import run
from fleet import file_server
from lora import lora
from running import ADMIN, serving
from weightpager.bundle.garbage import collect
from weightpager.kernels.choice import NATIVE
from weightpager.server.scheduling.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT, of transformers

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "weightpager"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
FLEET = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")


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
    tiny_gguf.write(folder / "smollm2-q4_0.gguf", folder / "dense", "Q4_0")
    lora(folder / "dense", folder / "german-lora")
    return folder


@pytest.mark.slow
def test_the_python_example_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    exec(compile(blocks("python")[0].replace("assistant.bundle", "python.bundle"), "README.md", "exec"), {})


@pytest.mark.slow
def test_the_commands_run(workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    pages = README + (ROOT / "docs" / "install.md").read_text(encoding="utf-8")  # which goes on from there
    commands = [line for block in blocks("", pages) for line in block.splitlines() if line.startswith("weightpager ")]
    assert len(commands) >= 7
    for command in commands:
        if "copy.bundle" in command:
            shutil.copytree("assistant.bundle", "copy.bundle")
        done = run(capsys, monkeypatch, *shlex.split(command, comments=True)[1:])
        assert done.code == 0, f"{command}: {done.err}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "count"), [("architecture.md", 2), ("prediction.md", 3), ("own-model.md", 5)])
def test_the_examples_of_a_page_run(workplace: Path, monkeypatch: pytest.MonkeyPatch, page: str, count: int) -> None:
    monkeypatch.chdir(workplace)
    if not Path("page.bundle").exists():
        wp.compile("tasks.yaml", out="page.bundle")
    examples = blocks("python", (ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert len(examples) == count
    names = {"wp": wp}
    for code in examples:
        exec(compile(code.replace("assistant.bundle", "page.bundle"), page, "exec"), names)


@pytest.mark.slow
@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_the_examples_of_python_s_names_run(
    workplace: Path, writer_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("WEIGHTPAGER_BACKEND", "native")
    if not Path("page.bundle").exists():
        wp.compile("tasks.yaml", out="page.bundle")
    text = "\n".join(blocks("pycon", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    places = {"assistant.bundle": "page.bundle", "writer.bundle": str(writer_bundle), "notes": "numbers"}
    text = re.sub("|".join(map(re.escape, places)), lambda at: places[at[0]], text)
    examples = doctest.DocTestParser().get_doctest(text, {}, "api.md", None, 0)
    assert len(examples.examples) > 15
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=said.append, clear_globs=False)
    assert not failed, "".join(said)
    for engine in (examples.globs["engine"], examples.globs["writer"]):
        engine.close()


def test_the_commands_of_sizing_run(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    if not Path("page.bundle").exists():
        wp.compile("tasks.yaml", out="page.bundle")
    page = (ROOT / "docs" / "measuring.md").read_text(encoding="utf-8")
    commands = [line for block in blocks("", page) for line in block.splitlines()]
    assert len(commands) == 4
    for command in commands:
        done = run(capsys, monkeypatch, *shlex.split(command.replace("assistant.bundle", "page.bundle"))[1:])
        assert done.code == 0, f"{command}: {done.err}"


def served() -> list[list[str]]:
    """The arguments of ``weightpager`` in the unit and in the container of the page on serving."""
    unit, container = blocks("ini", SERVING)[0], blocks("dockerfile", SERVING)[0]
    (started,) = re.findall(r"^ExecStart=\S+/weightpager (.+)$", unit.replace("\\\n", ""), re.MULTILINE)
    entry, more = re.findall(r"^(?:ENTRYPOINT|CMD) (.+)$", container, re.MULTILINE)
    return [shlex.split(started), [*json.loads(entry)[1:], *json.loads(more)]]


@pytest.mark.parametrize("way", [0, 1], ids=["service", "container"])
def test_a_deployed_server_has_the_options_that_it_is_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, way: int
) -> None:
    done = run(capsys, monkeypatch, *served()[way], "--help")
    assert (done.code, done.err) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("way", [0, 1], ids=["service", "container"])
def test_a_deployed_server_starts_tells_its_health_and_stops(assistant_bundle: Path, tmp_path: Path, way: int) -> None:
    (tmp_path / "admin.token").write_text(ADMIN)
    places = {
        "/srv/bundles/assistant.bundle": str(assistant_bundle),
        "/bundles/assistant.bundle": str(assistant_bundle),
        "/var/lib/weightpager": str(tmp_path),
        "/state": str(tmp_path),
        "${CREDENTIALS_DIRECTORY}": str(tmp_path),
    }
    arguments = [re.sub("|".join(map(re.escape, places)), lambda at: places[at[0]], word) for word in served()[way]]
    command = [sys.executable, "-m", "weightpager", *arguments, "--port", "0"]
    nobody = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=nobody) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[0].rstrip("/")
            (health,) = re.findall(r'^HEALTHCHECK CMD \["python", "-c", "(.+)"\]$', SERVING, re.MULTILINE)
            exec(health.replace("http://127.0.0.1:8000", address), {})
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=100) == 0
        finally:
            process.kill()
    assert (tmp_path / "history").exists()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_is_sound_and_hardened(tmp_path: Path) -> None:
    unit = tmp_path / "weightpager.service"
    unit.write_text(blocks("ini", SERVING)[0].replace("/opt/weightpager/bin/weightpager", sys.executable))
    for check in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=15"]):
        ran = subprocess.run(["systemd-analyze", *check, unit], capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout[-300:] + ran.stderr


def test_the_unit_that_pulls_has_the_options_that_it_is_given(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (started,) = re.findall(
        r"^ExecStart=\S+/weightpager (.+)$", blocks("ini", FLEET)[0].replace("\\\n", ""), re.MULTILINE
    )
    done = run(capsys, monkeypatch, *shlex.split(started), "--help")
    assert (done.code, done.err) == (0, "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_that_pulls_is_sound(tmp_path: Path) -> None:
    unit = tmp_path / "weightpager-pull.service"
    unit.write_text(blocks("ini", FLEET)[0].replace("/opt/weightpager/bin/weightpager", sys.executable))
    ran = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's script needs curl")
def test_the_script_that_tells_a_server_passes_on_what_it_answers(assistant_bundle: Path, tmp_path: Path) -> None:
    (script,) = [code for code in blocks("text", FLEET) if code.startswith("#!")]
    (tmp_path / "admin.token").write_text(ADMIN)
    environment = {"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": str(tmp_path)}

    def code(url: str) -> int:
        command = ["sh", "-c", script.replace("http://127.0.0.1:8000", url)]
        return subprocess.run(command, env=environment, capture_output=True, check=False).returncode

    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running:
        assert code(running.url) == 0
    assert code(running.url) == 0  # it isn't running any more
    with serving(assistant_bundle, Settings(admin_token=ADMIN[::-1])) as running:
        assert code(running.url) != 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands need curl")
def test_a_question_about_a_picture_is_asked_as_the_page_says(watcher_bundle: Path, tmp_path: Path) -> None:
    (script,) = [code for code in blocks("sh", SERVING) if "image_url" in code]
    tiny.picture(tmp_path / "frame.png", "red", "asked", (40, 33)).rename(tmp_path / "frame.jpg")
    with serving(watcher_bundle) as running:
        for told, real in {
            "http://127.0.0.1:8000": running.url,
            '"light\\"': '"number\\"',
            "Which colour is the light?": "red",
        }.items():
            assert told in script
            script = script.replace(told, real)
        ran = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(ran.stdout)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["prompt_tokens"] > 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands need curl")
def test_a_newer_bundle_is_taken_over_as_the_page_says(assistant_bundle: Path, tmp_path: Path) -> None:
    for name in ("first.bundle", "larger.bundle"):
        shutil.copytree(assistant_bundle, tmp_path / name)
    collect(tmp_path / "larger.bundle", drop=["weather"])
    (tmp_path / "assistant.bundle").symlink_to("first.bundle")
    (tmp_path / "admin.token").write_text(ADMIN)
    (script,) = [code for code in blocks("sh", SERVING) if "/admin/reload" in code]
    with serving(tmp_path / "assistant.bundle", Settings(admin_token=ADMIN)) as running:
        script = script.replace("http://127.0.0.1:8000", running.url).replace("/etc/weightpager/", "")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout.splitlines()[-1])["removed"] == ["weather"]
        shutil.rmtree(tmp_path / "first.bundle")
        assert running.openai.embeddings.create(model="animal", input="sun").data


def test_the_commands_against_damage_run(
    assistant_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("assistant.bundle", "copy.bundle"):
        shutil.copytree(assistant_bundle, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    file = Path("assistant.bundle/pages-0000.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (script,) = [code for code in blocks("sh", SERVING) if "--repair" in code]
    codes = [run(capsys, monkeypatch, *shlex.split(line)[1:]).code for line in [*script.splitlines()] * 2]
    assert codes == [1, 0, 0, 0]


@pytest.mark.slow
def test_the_commands_for_many_devices_run(
    assistant_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("assistant.bundle", "larger.bundle"):
        shutil.copytree(assistant_bundle, tmp_path / name)
    collect(tmp_path / "assistant.bundle", drop=["weather"])
    for name in ("bundles", "trial"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    (answer,) = wp.Engine.from_pretrained("larger.bundle").predict("animal", ["red cat"])
    Path("rows.jsonl").write_text(json.dumps({"task": "animal", "text": "red cat", "label": answer.label}))
    scripts = blocks("sh", FLEET)
    commands = [line for code in scripts for line in code.splitlines()]
    assert len(commands) == 17
    Path("repository").mkdir()
    with file_server(tmp_path / "repository") as url:
        for command in commands:
            words = shlex.split(command.replace("http://127.0.0.1:8080", url))
            done = run(capsys, monkeypatch, *words[1:])
            assert done.code == 0, f"{command}: {done.err}"
            if "init" in words:
                shutil.copy("repository/metadata/1.root.json", "root.json")


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
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


def test_links_lead_somewhere() -> None:
    assert sum(len(links(page)) for page in pages()) > 50
    for page in pages():
        for target, heading in links(page):
            assert target.exists(), f"{page.name}: {target}"
            assert not heading or heading in anchors(target), f"{page.name}: {target.name}#{heading}"


def test_files_and_rooms_of_ours_that_pages_name_exist() -> None:
    """Decisions tell of their time; all other pages tell of today. Rooms are folders that the architecture names."""
    named = {
        (page.name, path)
        for page in pages()
        if ROOT / "docs" / "decisions" not in page.parents
        for path in re.findall(r"(?<![\w/.-])((?:\w+/)+\w+\.(?:py|cpp|hpp))\b", page.read_text(encoding="utf-8"))
    }
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named |= {("architecture.md", path) for path in re.findall(r"`((?:\w+/)+)`", architecture)}
    assert len(named) > 50
    assert (
        sorted(one for one in named if not any((root / one[1]).exists() for root in (ROOT, PACKAGE.parent, PACKAGE)))
        == []
    )


def benchmarks() -> set[tuple[str, ...]]:
    """What follows ``python -m`` in commands of all pages but decisions."""
    texts = [page.read_text(encoding="utf-8") for page in pages() if page.parent.name != "decisions"]
    found = {
        tuple(shlex.split(command, comments=True))
        for text in texts
        for command in re.findall(r"(?<!')python -m (benchmarks\.[^`\n]+)", text)
    }
    return {words for words in found if words[0] != "benchmarks.device.steps"}  # its arguments aren't parsed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_benchmarks_that_pages_name_have_the_options_that_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(benchmarks()) > 40
    for module, *arguments in sorted(benchmarks()):
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        assert ended.value.code == 0, f"{module} {shlex.join(arguments)}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [target for target, _ in links(page) if target.suffix == ".md"]
    assert set(pages()) - reached == set()


def decisions() -> dict[int, str]:
    """Of each number its line in the index: records are files, archived ones headings of a page for each field."""
    folder, lines = ROOT / "docs" / "decisions", {}
    for record in sorted(folder.glob("0*.md")):
        title = record.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert int(title.partition(". ")[0]) == int(record.name[:4])
        lines[int(record.name[:4])] = f"* [{title}]({record.name})"
    for page in sorted((folder / "archive").glob("*.md")):
        for title in re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            number = int(title.partition(". ")[0])
            assert number not in lines, f"decision {number} stands twice"
            lines[number] = f"* [{title}](archive/{page.name}#{anchor(title)})"
    return lines


def test_the_index_of_decisions_has_their_titles() -> None:
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    listed = [line for line in index.splitlines() if line.startswith("* [")]
    assert sorted(listed) == sorted(decisions().values())


def test_decisions_stay_few_and_short() -> None:
    folder = ROOT / "docs" / "decisions"
    records = {page.name: len(page.read_text(encoding="utf-8").split()) for page in folder.glob("0*.md")}
    assert len(records) <= 30, "move records that other pages explain by now to docs/decisions/archive"
    assert {name: words for name, words in records.items() if words > 450} == {}


def test_decisions_that_are_named_by_number_exist() -> None:
    code = [path for name in ("src", "csrc", "benchmarks") for path in (ROOT / name).rglob("*.*")]
    files = [*pages(), *(path for path in code if path.suffix in {".py", ".cpp", ".hpp", ".md", ".j2"})]
    named = {
        (path.name, int(number))
        for path in files
        for number in re.findall(r"[Dd]ecision\s+(\d+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 30
    assert {number for _, number in named} - decisions().keys() == set()


def test_lines_that_install_torch_name_the_index_for_the_cpu() -> None:
    """As everybody can copy them: with a variable only where the same block sets it."""
    index = "--index-url https://download.pytorch.org/whl/cpu"
    assert f"pip install torch {index}" in README
    for block in (text for page in pages() for text in page.read_text(encoding="utf-8").split("```")[1::2]):
        for line in block.splitlines():
            if re.search(r"pip install [^#]*(?<!\[)\btorch\b", line):
                assert index in line or "ARG TORCH_INDEX=https://" in block, line


def test_the_site_s_search_needs_nothing_from_elsewhere() -> None:
    """Opened from files, it needs a script, which the plugin fetches from elsewhere unless one of ours has its name."""
    site = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    assert {"search", "offline"} <= set(site["plugins"])
    (script,) = site["extra"]["polyfills"]
    assert "iframe-worker" in script
    assert (ROOT / "docs" / script).is_file()
