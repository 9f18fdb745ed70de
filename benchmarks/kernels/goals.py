"""What was asked of the kernels before any was measured."""

from __future__ import annotations

Goal = float
"""The least ratio of dense time to ours."""

_TOKENS = (1, 8, 32, 128, 512)

GOALS: dict[tuple[str, float, int], Goal] = {
    ("bfloat16", sparsity, tokens): goal
    for sparsity, goals in {
        0.0: (0.9, 0.9, 1.0, 1.0, 0.9),
        0.5: (1.7, 1.7, 2.0, 1.8, 1.5),
        0.75: (3.2, 3.2, 3.8, 3.0, 2.4),
    }.items()
    for tokens, goal in zip(_TOKENS, goals, strict=True)
} | {
    ("int4", 0.0, 1): 3.0,
    ("decode bfloat16", 0.5, 24): 1.3,
    ("decode bfloat16", 0.75, 24): 1.5,
    ("decode int8", 0.5, 24): 1.5,
    ("prefill bfloat16", 0.5, 512): 1.3,
    ("body bfloat16", 0.5, 512): 1.3,
}
"""(dtype, sparsity, tokens) → at least; with ``prefill`` or ``decode`` before the dtype for a whole model."""

LEAST_SHARE_OF_READ = 0.85
"""Of a plain read's bandwidth, at one token."""

SMALLER_SPEEDUP = {("int8", "bfloat16"): 1.6, ("int4", "int8"): 1.6}
"""Of a dtype over a wider one of the same blocks, at one token."""

INT4_SHARE = 0.9
"""Of bfloat16's speed at 32 tokens and more, for int4 of the same blocks."""

MOST_TOKENS_IN_FLOAT32 = 8
"""Up to so many the goals are asked for on instruction sets without bfloat16, where dense layers are in float32."""
