"""``weightpager demo``: a real model, six real tasks, one memory budget, and what was gained."""

from weightpager_lab.demo.run import run_demo

__all__ = ["run_demo"]
