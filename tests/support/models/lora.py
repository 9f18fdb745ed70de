"""LoRA adapters of models, by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def lora(model: Path, out: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """A random adapter of a model."""
    torch.manual_seed(0)
    given = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", **settings}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(**given))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    adapted.to(dtype).save_pretrained(out)
    return out
