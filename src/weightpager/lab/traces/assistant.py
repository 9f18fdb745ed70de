"""A day of a voice assistant that answers, plans, reads mail and searches."""

from __future__ import annotations

from weightpager.lab.traces.chain import Chain
from weightpager.lab.traces.trace import Trace

CHAIN = Chain(
    {
        "wake_word": {"transcribe": 1.0},
        "transcribe": {"intent": 0.9, "translate": 0.1},
        "intent": {
            "music": 0.26,
            "weather": 0.18,
            "mail": 0.16,
            "search": 0.14,
            "calendar": 0.12,
            "lights": 0.08,
            "chat": 0.06,
        },
        "music": {"wake_word": 0.85, "speak": 0.15},
        "weather": {"speak": 0.92, "calendar": 0.08},
        "mail": {"summarise": 0.6, "reply": 0.2, "spam": 0.2},
        "search": {"rank": 0.9, "speak": 0.1},
        "calendar": {"speak": 0.6, "mail": 0.2, "route": 0.2},
        "lights": {"wake_word": 1.0},
        "chat": {"speak": 1.0},
        "translate": {"speak": 1.0},
        "summarise": {"speak": 0.8, "reply": 0.2},
        "reply": {"grammar": 0.8, "speak": 0.2},
        "grammar": {"speak": 0.6, "mail": 0.4},
        "spam": {"mail": 0.5, "speak": 0.5},
        "rank": {"summarise": 0.7, "speak": 0.3},
        "route": {"speak": 0.8, "calendar": 0.2},
        "speak": {"wake_word": 0.55, "transcribe": 0.35, "chat": 0.1},
    },
    {"wake_word": 6.0, "music": 4.0, "intent": 0.3, ("speak", "wake_word"): 3.0},
)


def assistant(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Chains of tasks that begin with a wake word or a follow-up question; the intent is what is hard to foresee."""
    return CHAIN.trace("assistant", switches, dwell, seed)
