"""Which transformers is here, and whether it reads what another one wrote."""

from __future__ import annotations

import re

import transformers
from transformers import PretrainedConfig

MAJOR = int(transformers.__version__.split(".")[0])
"""The major version that is installed."""


def later_writer(config: PretrainedConfig) -> str | None:
    """The transformers that wrote a configuration, if that is of a later major version than the one here.

    It may name settings in another way, and a name that isn't known is passed over without a word: version 4 would
    compute what version 5 wrote with the usual base of rotary positions, whatever the model's.
    """
    writer = str(getattr(config, "transformers_version", None))
    major = re.match(r"\d{1,4}(?=\.)", writer)
    return writer if major is not None and int(major[0]) > MAJOR else None
