"""`DamagedPageFile`: a page file that is mended in place, page by page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.new_directory import sync
from weightpager.bundle.format import page_file
from weightpager.bundle.repair.donor import Donor
from weightpager.errors import BundleError


@dataclass(frozen=True)
class DamagedPageFile:
    """A page file whose pages may be damaged or missing.

    Attributes:
        path: the place where it is, or should be.
        ids: its pages' ids, uint8 [pages, 32].
        page_bytes: bytes of a page.
    """

    path: Path
    ids: npt.NDArray[np.uint8]
    page_bytes: int

    def mend_frame(self) -> bool:
        """Restore size and header where they are wrong; True if they were."""
        try:
            page_file.check(self.path, len(self.ids), self.page_bytes)
        except BundleError:
            page_file.frame(self.path, len(self.ids), self.page_bytes)
            sync(self.path.parent)
            return True
        return False

    def is_damaged(self, place: int) -> bool:
        """Whether a page's bytes don't match its id, or can't be read."""
        digest: bytes = self.ids[place].tobytes()
        try:
            with self.path.open("rb", buffering=0) as file:
                return page_file.PageHashes(file.fileno(), self.page_bytes).at(self._offset(place)) != digest
        except OSError:
            return True

    def mend(self, places: Sequence[int], donor: Donor) -> dict[int, str]:
        """Write these pages from the donor; by place, why those that are still damaged could not be written.

        Raises:
            OSError: the storage refused it; pages are as damaged as they were, or right.
        """
        problems = {}
        with self.path.open("r+b", buffering=0) as file:
            for place in places:
                try:
                    self._mend_page(file.fileno(), place, donor)
                except BundleError as error:
                    problems[place] = str(error)
                except OSError as error:
                    problems[place] = f"cannot be written: {error.strerror or error}"
            # Once for all of them: a page that isn't on the disk yet is as damaged as it was.
            os.fsync(file.fileno())
        return problems

    def _mend_page(self, descriptor: int, place: int, donor: Donor) -> None:
        offset = self._offset(place)
        content = donor.page(self.ids[place].tobytes(), self.page_bytes, self.path.name, offset)
        page_file.write_at(descriptor, content, offset)

    def _offset(self, place: int) -> int:
        return self._start + place * self.page_bytes

    @cached_property
    def _start(self) -> int:
        return len(page_file.header(len(self.ids), self.page_bytes))
