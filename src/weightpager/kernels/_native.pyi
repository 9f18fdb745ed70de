from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar

def isas() -> list[str]: ...
def dtypes() -> list[str]: ...
def exact(isa: int, /) -> str: ...
def threading() -> str: ...
def read_memory(address: int, size: int, threads: int, /) -> None: ...
def widen_rows(base: int, offsets: int, at: int, count: int, columns: int, out: int, bfloat16: bool, /) -> None: ...
def look_up_rows(
    pages: int,
    blocks: int,
    block_rows: int,
    block_cols: int,
    dtype: str,
    columns: int,
    ids: int,
    count: int,
    out: int,
    bfloat16: bool,
    /,
) -> None: ...

class Ending:
    entered: bool
    def leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...

def hashers() -> list[str]: ...
def digests(hasher: int, memory: int, count: int, size: int, /) -> bytes: ...
def imitate_storage(bytes_per_second: float, /) -> None: ...
def raw_reads(
    threads: int,
    most: int,
    count: int,
    pages: int,
    files: int,
    offsets: int,
    slots: int,
    expected: int,
    memory: int,
    page_bytes: int,
    /,
) -> float: ...

class ReadQueue:
    def __init__(self, *, reads: int, most_bytes: int, group_microseconds: int, ring: bool) -> None: ...
    def load(
        self,
        number: int,
        priority: int,
        cancellable: bool,
        most: int,
        count: int,
        pages: int,
        files: int,
        offsets: int,
        slots: int,
        expected: int,
        memory: int,
        page_bytes: int,
        /,
    ) -> int: ...
    def drive(self) -> tuple[list[tuple[int, bytes, int, int, int]], list[int]] | None: ...
    def cancel(self, keep: int, count: int, /) -> bytes: ...
    def withdraw(self, load: int, /) -> None: ...
    def outstanding(self) -> bytes: ...
    def close(self) -> list[tuple[int, bytes, int, int, int]]: ...
    def abandon(self) -> None: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def device(self) -> str: ...

class LandedReads:
    @property
    def reads(self) -> int: ...
    def wait(self, read_timeout: float, reads_ended: Callable[[], int], /) -> tuple[int, int, int, int]: ...
    def place(self, count: int, slots: int, memory: int, /) -> None: ...
    def drop(self) -> None: ...

class OwnReads:
    def __init__(self, *, reads: int, ring: bool) -> None: ...
    def begin(
        self, most: int, count: int, pages: int, files: int, offsets: int, expected: int, page_bytes: int, /
    ) -> LandedReads | None: ...
    def close(self, seconds: float, /) -> bool: ...
    @property
    def device(self) -> str: ...

class RowFiles:
    def __init__(
        self,
        reads: OwnReads,
        *,
        ids: Any,
        first_page: int,
        page_bytes: int,
        most: int,
        extents: list[tuple[int, int, int]],
    ) -> None: ...

class RowLookup:
    def __init__(
        self,
        *,
        places: int,
        wide: int,
        rows: int,
        row_bytes: int,
        capacity: int,
        stored: int,
        slot_of: int,
        row_in: int,
        last_use: int,
        stay: int,
        state: int,
        tally: int,
        page_bytes: int,
        bytes_at_once: int,
        read: RowFiles | Callable[[bytes], Any],
    ) -> None: ...
    def look_up(
        self, ids: int, count: int, out: int, bfloat16: bool, read_timeout: float, reads_ended: Callable[[], int], /
    ) -> tuple[int, int, int, int] | None: ...
    def fill(self, read_timeout: float, reads_ended: Callable[[], int], /) -> tuple[int, int, int, int]: ...
    def read_all(
        self, out: int, read_timeout: float, reads_ended: Callable[[], int], /
    ) -> tuple[int, int, int, int]: ...
    def resize(self, slots: int, /) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *of: object) -> None: ...

class TableExpander:
    def __init__(
        self,
        blocks: int,
        layers: int,
        page_numbers: int,
        starts: int,
        pages: int,
        places: int,
        wide: bool,
        total: int,
        grids: list[tuple[int, int, int]],
        /,
    ) -> None: ...
    def expand(self, used: int, crow: int, columns: int, locations: int, /) -> None: ...

class Weight:
    def __init__(
        self,
        *,
        arena: int,
        page_table: int,
        crow_indices: int,
        col_indices: int,
        locations: int,
        slots: int,
        page_bytes: int,
        blocks_per_page: int,
        out_features: int,
        in_features: int,
        block_rows: int,
        block_cols: int,
        dtype: str,
    ) -> None: ...
    def linear(
        self,
        isa: int,
        x: int,
        y: int,
        bfloat16: bool,
        tokens: int,
        bias: int,
        bias_bfloat16: bool,
        threads: int,
        /,
    ) -> int: ...
    def gated(
        self,
        isa: int,
        gate: Weight,
        activation: str,
        x: int,
        y: int,
        bfloat16: bool,
        tokens: int,
        gate_bias: int,
        gate_bias_bfloat16: bool,
        bias: int,
        bias_bfloat16: bool,
        threads: int,
        /,
    ) -> int: ...

def operators() -> list[str]: ...

class TooLargeError(ValueError): ...

class KVPiece:
    @property
    def tokens(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class KVCache:
    block: ClassVar[int]
    def __init__(self, most_bytes: int, /, float16: bool = False) -> None: ...
    def shorten(self, tokens: int, /) -> None: ...
    def select(self, rows: list[int], /) -> None: ...
    def piece(self, start: int, stop: int, /) -> KVPiece: ...
    def append(self, piece: KVPiece, tokens: int, /) -> None: ...
    @property
    def tokens(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def bytes(self) -> int: ...

class Workspaces:
    def __init__(self) -> None: ...
    @property
    def bytes(self) -> int: ...

class Program:
    def __init__(self, isa: int, most_bytes: int, workspaces: Workspaces, /) -> None: ...
    def add_input(self, name: str, dtype: str, sizes: list[int], /) -> None: ...
    def add_array(self, name: str, address: int, dtype: str, sizes: list[int], /) -> None: ...
    def add_weight(self, name: str, weight: Weight, table: bool, /) -> None: ...
    def add_rows(self, name: str, rows: int, columns: int, /) -> None: ...
    def add_node(self, op: str, operands: list[int], attributes: dict[str, Any], outputs: int, /) -> None: ...
    def add_output(self, value: int, /) -> None: ...
    def outputs(self, sizes: list[list[int]], /) -> list[tuple[str, list[int]]]: ...
    def begin(self, addresses: list[int], sizes: list[list[int]], cache: KVCache | None) -> None: ...
    def run(self, first: int, end: int, threads: int, /) -> int: ...
    def cache_block_bytes(self, sizes: list[list[int]], float16: bool) -> int: ...
    def finish(self) -> None: ...
    def end(self) -> None: ...
    def sizes(self, value: int, /) -> list[int]: ...
    def dtype(self, value: int, /) -> str: ...
    def read(self, value: int, to: int, /) -> None: ...
    def write(self, value: int, source: int, size: int, /) -> None: ...
    @property
    def activation_bytes(self) -> int: ...
    @property
    def plans_made(self) -> int: ...

def products() -> list[str]: ...

class KeptBlocks:
    def __init__(
        self, crow_indices: int, col_indices: int, out_features: int, in_features: int, rows: int, cols: int, /
    ) -> None: ...
    def pack(
        self,
        products: int,
        weight: int,
        divisors: int,
        least: float,
        largest: float,
        blocks: int,
        turned: int,
        threads: int,
        /,
    ) -> None: ...
    def add_gradient(
        self, products: int, x: int, dy: int, bfloat16: bool, tokens: int, total: int, threads: int, /
    ) -> None: ...
