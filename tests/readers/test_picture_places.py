"""Where pictures stand among the words: in texts, in conversations, and in what chat templates write of them."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer import byte_level, metaspace, word_piece
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

import tiny
import tiny_pictures
from tiny_pictures import IMAGE, PICTURES, TOKEN
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import Pictures
from weightpager.compiler.data import reader_of
from weightpager.errors import BundleFormatError, CompileError, ImageError, RequestError
from weightpager.readers import tokenizer as tokenizer_module
from weightpager.readers.chat_template import ChatTemplate, conversation_of, messages_of, plain
from weightpager.readers.picture_reader import PictureReader
from weightpager.readers.tokenizer import open_tokenizer

RED, GREEN = 4, 5
LLAVA = """{% for message in messages %}{{ message['role'].upper() + ': '}}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}
{%- endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
CHATML = """{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}
{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
SHOWN = {"type": "image"}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_each_placeholder_takes_a_pictures_places() -> None:
    own = tiny_pictures.reader()
    assert own.prompt("red <image> green", bos=False, pictures=1) == (RED, IMAGE, IMAGE, GREEN)
    assert own.prompt("red", bos=True, pictures=2) == (2, IMAGE, IMAGE, IMAGE, IMAGE, RED)
    assert own.copy().prompt("red", bos=False, pictures=1) == (IMAGE, IMAGE, RED)
    assert own.prompt("red", bos=False) == (RED,)


@pytest.mark.parametrize(("text", "pictures"), [("<image>", 0), ("<image> red", 2), ("<image><image><image>", 2)])
def test_more_or_fewer_placeholders_than_pictures_are_refused(text: str, pictures: int) -> None:
    more = ", or none" if pictures else ""
    expected = f"expected as many <image> in the text as pictures, {pictures}{more}, found {text.count(TOKEN)}"
    with pytest.raises(ImageError, match=expected):
        tiny_pictures.reader().prompt(text, bos=False, pictures=pictures)


def test_a_model_without_a_tower_reads_no_pictures() -> None:
    with pytest.raises(ImageError, match="expected texts alone, as the model reads, found 1 pictures"):
        tiny.reader().prompt("red", bos=False, pictures=1)


@pytest.mark.parametrize("make", [word_piece, byte_level, metaspace])
@given(text=st.lists(st.sampled_from(["The cat", " ", "\n", "façade", TOKEN, "日本", ""]), max_size=6))
def test_ids_are_those_of_transformers_processor(make: Any, text: list[str]) -> None:
    known: PreTrainedTokenizerFast = make()
    known.add_special_tokens({"additional_special_tokens": [TOKEN]})
    pictures = Pictures(
        blocks="shared", layers=1, token=TOKEN, token_id=known.convert_tokens_to_ids(TOKEN), tokens=4, width=8
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    own = tiny.reader(known).with_pictures(PictureReader.of(processor.to_dict(), pictures))
    theirs = LlavaProcessor(processor, known, patch_size=4)
    number = text.count(TOKEN)
    images = [tiny_pictures.noise()] * number or None
    wanted = theirs(images=images, text="".join(text), add_special_tokens=False)["input_ids"]
    wanted = wanted[0] if wanted and isinstance(wanted[0], list) else wanted
    assert list(own.prompt("".join(text), bos=False, pictures=number)) == wanted


def test_a_tokenizer_must_know_the_placeholder() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer that reads '<image>' as a special token, 16, found"):
        tiny.reader().with_pictures(tiny_pictures.picture_reader())
    known = tiny_pictures.tokenizer()
    known.split_special_tokens = True
    with pytest.raises(CompileError, match="model: expected a tokenizer that reads '<image>' as a special token"):
        reader_of(known, tiny_pictures.picture_reader())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder of a bundle whose tasks read pictures."""
    tiny_pictures.tokenizer().save_pretrained(tmp_path)
    tiny_pictures.processor().save_pretrained(tmp_path)
    vision = {"model_type": "clip_vision_model", "num_channels": 3, "image_size": tiny_pictures.SIDE}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": vision}))
    monkeypatch.setattr(tokenizer_module, "model_dir", lambda _: tmp_path)
    monkeypatch.setattr(Bundle, "pictures", PICTURES)
    return tmp_path


def test_a_bundles_tokenizer_reads_its_pictures(folder: Path, writer_bundle: Path) -> None:
    found = open_tokenizer(Bundle.open(writer_bundle))
    assert found.pictures is not None
    wanted = tiny_pictures.picture_reader().read(tiny_pictures.noise())
    assert found.pictures.read(tiny_pictures.noise()).key == wanted.key


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (None, "the settings of an image processor, found none"),
        ({"image_processor_type": "FuyuImageProcessor"}, "expected an image processor among .*found Fuyu"),
    ],
)
def test_a_damaged_bundle_is_refused(
    folder: Path, writer_bundle: Path, change: dict[str, Any] | None, expected: str
) -> None:
    file = folder / "preprocessor_config.json"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(BundleFormatError, match=expected):
        open_tokenizer(Bundle.open(writer_bundle))


@pytest.mark.parametrize(
    ("strategy", "vision", "expected"),
    [
        ("default", {"image_size": 7}, r"expected pixels \(3, 7, 7\), as the picture tower takes, found \(3, 6, 6\)"),
        ("default", {"image_size": [6, 7]}, r"expected pixels \(3, 6, 7\)"),
        ("default", {"num_channels": 1}, r"expected pixels \(1, 6, 6\)"),
        ("default", {"model_type": "dinov2", "patch_size": 2}, r"pixels of 2 tokens a picture, found .*, of 9$"),
        ("full", {"model_type": "dinov2", "patch_size": 6, "image_size": 7}, None),
        ("default", {"model_type": "dinov2", "patch_size": 6}, "pixels of 2 tokens a picture, found .*, of 1$"),
        ("default", {"image_size": None}, None),
    ],
)
@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_that_the_tower_does_not_take_are_refused(
    folder: Path, writer_bundle: Path, strategy: str, vision: dict[str, Any], expected: str | None, file: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    changed = {"vision_config": config["vision_config"] | vision, "vision_feature_select_strategy": strategy}
    (folder / "config.json").write_text(json.dumps(changed))
    if file == "processor_config.json":
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / file).write_text(json.dumps({"image_processor": settings}))
    if expected is None:
        assert open_tokenizer(Bundle.open(writer_bundle)).pictures is not None
        return
    with pytest.raises(BundleFormatError, match=rf"model/{file}: content: .*{expected}"):
        open_tokenizer(Bundle.open(writer_bundle))


@pytest.mark.parametrize(
    ("part", "picture"),
    [
        (SHOWN, None),
        ({"type": "image", "image": "a.png"}, "a.png"),
        ({"type": "image", "image": None, "path": "a.png", "text": None}, "a.png"),
        ({"type": "image", "url": "data:image/png;base64,AA"}, "data:image/png;base64,AA"),
        ({"type": "image", "base64": "AA"}, "data:image/png;base64,AA"),
        ({"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}, "data:,"),
        ({"type": "image_url", "image_url": "data:,"}, "data:,"),
    ],
)
def test_parts_say_where_pictures_stand(part: dict[str, Any], picture: str | None) -> None:
    found = conversation_of([user([said("a"), part, said("b")]), {"role": "assistant", "content": [said("c")]}])
    assert found.messages == [user([said("a"), SHOWN, said("b")]), {"role": "assistant", "content": "c"}]
    assert found.pictures == (picture,)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": "a.mp4"},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image", "image": "a.png", "url": "b.png"},
        "image",
        None,
    ],
)
def test_other_parts_are_refused(part: Any) -> None:
    with pytest.raises(ValueError, match="expected messages with a role and a content that is text, found"):
        conversation_of([user([said("a"), part])])


def test_who_reads_texts_alone_takes_no_pictures() -> None:
    with pytest.raises(ValueError, match="expected messages with a role and a content that is text, found"):
        messages_of([user([SHOWN])])


def test_pictures_beside_a_conversation_are_those_that_no_part_names() -> None:
    talk = conversation_of([user([SHOWN, {"type": "image", "image": "b"}]), user([SHOWN])])
    assert talk.given(["a", "c"], TOKEN).pictures == ("a", "b", "c")
    for number in (0, 1, 3):
        expected = f"expected as many pictures beside the messages as parts that name none, 2, found {number}"
        with pytest.raises(ImageError, match=expected):
            talk.given(["a"] * number, TOKEN)


def test_pictures_stand_in_front_of_what_a_user_says_first() -> None:
    system = {"role": "system", "content": "be brief"}
    talk = conversation_of([system, user("red"), user("green")])
    assert talk.given(["a", "b"], TOKEN).messages == [system, user([SHOWN, SHOWN, said("red")]), user("green")]
    assert talk.given([], TOKEN).messages == talk.messages
    placed = conversation_of([user("red"), user(f"{TOKEN} green")]).given(["a"], TOKEN)
    assert (placed.messages, placed.pictures) == ([user("red"), user(f"{TOKEN} green")], ("a",))


def written(source: str | None, messages: list[dict[str, Any]]) -> str:
    with closing(ChatTemplate.of(tiny_pictures.reader(source), 10_000)) as template:
        return template.render(messages)


TALK = [user([SHOWN, SHOWN, said("red")]), {"role": "assistant", "content": "cat"}, user("green")]


@pytest.mark.parametrize("source", [LLAVA, tiny_pictures.PARTS])
def test_templates_that_know_parts_are_written_as_transformers_writes_them(source: str) -> None:
    in_parts = [{**each, "content": said_in_parts(each["content"])} for each in TALK]
    wanted = tiny_pictures.tokenizer(source).apply_chat_template(in_parts, tokenize=False, add_generation_prompt=True)
    assert written(source, TALK) == wanted
    assert wanted.count(TOKEN) == 2
    assert "green" in wanted


@pytest.mark.parametrize("answered", [0, 1])
def test_a_template_that_was_stopped_once_is_tried_again(answered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be busy for a while: what that says of a template must not be kept."""
    with closing(ChatTemplate.of(tiny_pictures.reader(LLAVA), 10_000)) as template:
        answer, asked = template._answer, list[Any]()

        def stopped(messages: Any) -> dict[str, str]:
            asked.append(messages)
            return {"limit": "2 s of computing"} if len(asked) == answered + 1 else answer(messages)

        with monkeypatch.context() as busy:
            busy.setattr(template, "_answer", stopped)
            with pytest.raises(
                RequestError, match="the model's chat template took more than 2 s of computing"
            ) as error:
                template.render(TALK)
        assert (error.value.param, error.value.code) == ("messages", "chat_template_limit")
        assert template.render(TALK) == written(LLAVA, TALK)


def said_in_parts(content: Any) -> list[Any]:
    return [said(content)] if isinstance(content, str) else content


def test_other_templates_get_placeholders_in_lines_of_their_own() -> None:
    texts = [user(f"{TOKEN}\n{TOKEN}\nred"), *TALK[1:]]
    wanted = tiny_pictures.tokenizer(CHATML).apply_chat_template(texts, tokenize=False, add_generation_prompt=True)
    assert written(CHATML, TALK) == wanted
    assert written(None, TALK) == f"{TOKEN}\n{TOKEN}\nred\ncat\ngreen\n"


def test_a_conversation_with_a_task_of_plain_prompts_has_pictures_as_these_have() -> None:
    assert plain(TALK, TOKEN) == f"{TOKEN}{TOKEN}red\ncat\ngreen"
    own, talk = tiny_pictures.reader(), [user([SHOWN, said("red")])]
    assert own.prompt(plain(talk, TOKEN), bos=True, pictures=1) == own.prompt("red", bos=True, pictures=1)


def test_a_conversation_without_pictures_is_written_as_ever() -> None:
    with closing(ChatTemplate.of(tiny.reader(tiny_pictures.tokenizer(CHATML)), 10_000)) as template:
        assert template.render(TALK[1:]) == written(CHATML, TALK[1:])
