"""Task data: files → rows → examples or images → batches."""

from weightpager.compiler.data.splits import TaskData, batched, classes, fingerprint, load, load_eval

__all__ = ["TaskData", "batched", "classes", "fingerprint", "load", "load_eval"]
