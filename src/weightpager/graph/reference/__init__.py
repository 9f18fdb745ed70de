"""A graph run over numpy: one plain function an operator. Slow, and the judge of everything that is fast."""

from weightpager.graph.reference.attention import KeyValues
from weightpager.graph.reference.run import FUNCTIONS, run

__all__ = ["FUNCTIONS", "KeyValues", "run"]
