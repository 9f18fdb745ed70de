def isas() -> list[str]: ...
def exact(isa: int, /) -> str: ...
def threading() -> str: ...
def read_memory(address: int, size: int, threads: int, /) -> None: ...
def widen_rows(base: int, offsets: int, at: int, count: int, columns: int, out: int, bfloat16: bool, /) -> None: ...
def hashers() -> list[str]: ...
def digests(hasher: int, memory: int, count: int, size: int, /) -> bytes: ...
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
    def __init__(self, *, reads: int, threads: int, most_bytes: int, group_microseconds: int, ring: bool) -> None: ...
    def load(
        self,
        number: int,
        priority: int,
        common: bool,
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

class Placement:
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
