"""What is known of rows on demand."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from weightpager.figures import counter, gauge


@dataclass(frozen=True)
class RowReport:
    """Rows of tables that come on demand.

    Attributes:
        rows: how many rows there are.
        resident: rows in memory.
        resident_bytes: bytes of memory that these take.
        lookups: look-ups of rows since the engine was opened.
        hits: look-ups that found the row in memory.
        faults: rows that were read for a batch.
        bytes_read: bytes of the whole pages that were read for that.
        fault_seconds: seconds that batches took longer for that.
    """

    rows: int = field(metadata=gauge("rows", "Rows of tables that come on demand."))
    resident: int = field(metadata=gauge("resident_rows", "Of these, in memory."))
    resident_bytes: int = field(metadata=gauge("resident_row_bytes", "Memory that they take."))
    lookups: int = field(metadata=counter("row_lookups", "Rows that were looked up."))
    hits: int = field(metadata=counter("row_hits", "Look-ups that found their row in memory."))
    faults: int = field(metadata=counter("row_faults", "Rows that were read for a batch."))
    bytes_read: int = field(metadata=counter("row_read_bytes", "Read from storage for that."))
    fault_seconds: float = field(metadata=counter("row_fault_seconds", "Seconds that batches took longer for that."))

    def __add__(self, other: RowReport) -> RowReport:
        return RowReport(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))
