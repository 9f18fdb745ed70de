"""`Backend`: what runs the tasks of an open bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from weightpager.answers.model import CacheSize, ModelLimits, TaskModel
from weightpager.backends.task_parts import Parameters, TaskParts
from weightpager.bundle import Bundle
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer


class Backend(Protocol):
    """Makes of a task's parts what a caller runs. Safe to use from several threads."""

    @property
    def name(self) -> str:
        """The name by which it is asked for."""

    @property
    def kernel(self) -> str:
        """The kernel that multiplies by paged weights."""

    def place(self, stored: Parameters) -> Any:
        """Parameters where tasks read them, a `Placed`. The engine keeps nothing else of them."""

    def dtype(self, placed: Any) -> str:
        """What a task of such placed parameters computes in: "float32" or "bfloat16"."""

    def limits(self, bundle: Bundle, itemsize: int) -> ModelLimits:
        """What the bundle's model can read, and what that takes.

        Args:
            bundle: has the model.
            itemsize: bytes of a number that it computes with.
        """

    def cache_size(self, task: Any, itemsize: int) -> CacheSize:
        """What keys and values take of a task that writes and that `build` has made.

        Args:
            task: as `build` has made it.
            itemsize: bytes of a number that tasks compute with.
        """

    def reader(self, bundle: Bundle) -> Tokenizer | ImageReader:
        """What reads the tasks' inputs, for one thread at a time.

        Raises:
            BundleFormatError: the bundle's files can't be read.
            ConfigError: the tasks read images, and Pillow isn't installed.
        """

    def model(self, task: Any) -> TaskModel:
        """What answers need of a task that `build` has made."""

    def check(self, bundle: Bundle, placed: Mapping[str, Any]) -> None:
        """See that tasks can run, as far as that shows without building them. Reads no value.

        Args:
            bundle: with the tasks.
            placed: by task, its placed parameters and those of all tasks.

        Raises:
            BundleFormatError: parameters, graph and classes don't fit each other.
        """

    def rest(self) -> None:
        """Give back the memory that computing takes, as no task of it is called any more for now."""

    def build(self, parts: TaskParts[Any]) -> Any:
        """A task as its callers run it.

        Raises:
            BundleFormatError: the bundle's parameters don't make up the task.
        """
