"""Conversations as tasks read them."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Literal

import pytest

import tiny
import tiny_pairs
from weightpager.answers.model import Activations, ModelLimits
from weightpager.bundle import Generation, TaskEntry
from weightpager.server.inputs.text_inputs import TextInputs
from weightpager.server.inputs.vocabulary import Vocabulary


@pytest.mark.parametrize(("form", "wanted"), [("chat", "a2\nb2\n"), ("plain", "a2\nb2"), (None, "a2\nb2\n")])
def test_without_a_template_a_task_reads_the_form_that_it_learnt(
    form: Literal["plain", "chat"] | None, wanted: str
) -> None:
    own = tiny_pairs.tokenizer(tiny_pairs.by_level())
    own.chat_template = None
    limits = ModelLimits(512, 64, None, in_pieces=False, activations=Activations(0, 0))
    vocabulary = Vocabulary(tiny.reader(own), limits, None)
    generation = None if form is None else Generation(prompts=form, max_new_tokens=4, metrics=["chrf"])
    kind = "text-generation" if generation else "language-modeling"
    task = TaskEntry(
        name="a", kind=kind, classes=[], max_length=16, sparsity=0.5, dense=None, eval=None, generation=generation
    )
    said = [{"role": "user", "content": "a2"}, {"role": "user", "content": "b2"}]
    with closing(TextInputs(vocabulary, tiny.reader(own), most=8, body_bytes=1000)) as texts:
        ids = asyncio.run(texts.chat(said, task))
    assert own.decode(ids) == wanted
