"""Task data: a task's splits, and batches of tensors."""

from weightpager.compiler.data.splits import TaskData, classes, load

__all__ = ["TaskData", "classes", "load"]
