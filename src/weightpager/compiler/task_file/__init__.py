"""What the user writes: the task file, parsed once, frozen, explained where it is wrong. Pure."""

from weightpager.compiler.task_file.file import TaskFile, from_dict, load, restated

__all__ = ["TaskFile", "from_dict", "load", "restated"]
