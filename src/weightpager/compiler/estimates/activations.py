"""What a batch takes in memory on its way through a model: activations, logits, and caches of prompts."""

from __future__ import annotations

from transformers import PretrainedConfig

from weightpager.answers.batches import CACHED_TOKENS
from weightpager.backends.torch.kv_cache import bytes_per_token
from weightpager.backends.torch.model.architecture import context_length
from weightpager.bundle.format.manifest import FORMS
from weightpager.compiler.data.splits import NEW_TOKENS
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.training.attention import SHORT
from weightpager.compiler.training.device import multiplies_in_bfloat16, training_device

_HIDDEN_BYTES = {False: 54, True: 43}
"""What a backward pass takes, per token, layer and hidden unit: in float32, and where matrices multiply in bfloat16.
These and the next ones were measured on Llama's layers (decision 10); BERT's take two thirds of it. Attention of short
texts keeps 11 more, as it is in float32: so they take as much as all of a layer in float32."""

_NEURON_BYTES = {False: 16, True: 8}
"""The same, per token, layer and neuron of the feed-forward part."""

_NEURONS = 4
"""Neurons of the feed-forward part for each hidden unit, where the configuration doesn't tell."""

_SCORE_BYTES = 5
"""The same, per pair of tokens, layer and attention head, where attention is computed step by step."""

_LOGIT_BYTES = 12
"""Logits in float32, their softmax and their gradient, per class or word."""

_MEASURED = 4
"""Copies of the logits of one text while its likelihood is measured."""

_HIDDEN, _WIDE = 8, 3
"""Hidden states, queries, keys and values; and the feed-forward part's neurons, that a layer has at a time."""


def activation_bytes(source: DenseModel, task: str, batch: int) -> int:
    """What the backward pass of one batch of a task's longest texts, or of its images, needs."""
    config, spec = source.models[task].config, source.task_file.tasks[task]
    length = _length(source, task)
    hidden, layers, heads = (_most(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    logits = _LOGIT_BYTES * _logits(source, task)
    neurons, low = _most(config, "intermediate_size") or _NEURONS * hidden, multiplies_in_bfloat16(training_device())
    scores = _SCORE_BYTES * heads * length if config._attn_implementation == "eager" else 0
    short = length <= SHORT and not spec.takes_images
    kept = _HIDDEN_BYTES[low and not short] * hidden + _NEURON_BYTES[low] * neurons + scores  # per token and layer
    return batch * (length * layers * kept + logits)


def answer_bytes(source: DenseModel, task: str, batch: int) -> int:
    """Logits of a batch of a task's longest texts that is measured, and what is made of one text's."""
    return (batch + _MEASURED) * 4 * _logits(source, task)


def forward_bytes(source: DenseModel, task: str, batch: int) -> int:
    """What a batch of a task's longest texts, or of its images, takes of a layer that nothing is learnt through."""
    config = source.models[task].config
    hidden = _most(config, "hidden_size")
    neurons = _most(config, "intermediate_size") or _NEURONS * hidden
    return batch * _length(source, task) * 4 * (_HIDDEN * hidden + _WIDE * neurons)


def key_value_bytes(source: DenseModel, task: str, batch: int) -> int:
    """Keys and values of a batch of a task's longest prompts while they are answered; 0 if there are none."""
    spec, model = source.task_file.tasks[task], source.models[task]
    if not spec.completes:
        return 0
    length = min(_length(source, task) + (spec.max_new_tokens or NEW_TOKENS), context_length(model))
    return max(min(batch * length, CACHED_TOKENS), length) * bytes_per_token(model.config, itemsize=4)


def _logits(source: DenseModel, task: str) -> int:
    """How many numbers the head gives for a task's longest text, or for an image."""
    per_token = FORMS[source.task_file.tasks[task].kind].labels in ("each word", "none")
    labels = len(source.classes(task)) or int(getattr(source.models[task].config, "vocab_size", 0))
    return labels * (_length(source, task) if per_token else 1)


def _length(source: DenseModel, task: str) -> int:
    """Tokens of a task's longest texts; patches of an image."""
    if source.task_file.tasks[task].takes_images:
        return _patches(source, source.models[task].config)
    return source.task_file.max_length_of(task)


def _most(config: PretrainedConfig, key: str) -> int:
    """A number of the configuration; the largest where stages differ, 0 where it doesn't tell."""
    stated = getattr(config, key, None) or 0  # GPT-Neo has None
    return max(stated, default=0) if isinstance(stated, (list, tuple)) else int(stated)


def _patches(source: DenseModel, config: PretrainedConfig) -> int:
    """Patches of an image, and one more for its class; 1 where the configuration doesn't tell."""
    shape, patch = source.images.shape if source.images else None, getattr(config, "patch_size", None)
    if shape is None or not isinstance(patch, int) or patch <= 0:
        return 1
    _, height, width = shape
    return (height // patch) * (width // patch) + 1
