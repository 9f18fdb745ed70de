"""`Engine`: open a bundle, run its tasks, switch between them."""

from weightpager.engine.engine import Engine
from weightpager.engine.report import EngineReport, SwitchReport

__all__ = ["Engine", "EngineReport", "SwitchReport"]
