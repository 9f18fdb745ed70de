"""How long onnxruntime takes to load an adapter: ``python -m benchmarks.device.adapters.onnxruntime_load BUNDLE``.

The file is in the page cache, in float16. A swap is a load there, as the adapter's arrays are inputs of the next run;
decoding with one needs a model that was exported for it, and isn't measured. Needs ``pip install onnxruntime``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks.device.adapters.made import made
from weightpager.bundle import Bundle


def main(
    bundle: Annotated[Path, typer.Argument(help="Of a llama.")],
    rank: Annotated[int, typer.Option(help="Of the adapter.")] = 16,
    times: Annotated[int, typer.Option(help="That it is loaded.")] = 50,
) -> None:
    """Print the adapter's size, and the median, least and most milliseconds of a load."""
    import onnxruntime

    arrays = {
        f"{name}.lora_{side}": onnxruntime.OrtValue.ortvalue_from_numpy(values.astype(np.float16))
        for name, pair in made(Bundle.open(bundle), 0, rank).items()
        for side, values in zip("ab", pair, strict=True)
    }
    with tempfile.TemporaryDirectory() as folder:
        file, taken = Path(folder) / "adapter.onnx_adapter", []
        adapter = onnxruntime.AdapterFormat()
        adapter.set_adapter_version(1)
        adapter.set_model_version(1)
        adapter.set_parameters(arrays)
        adapter.export_adapter(str(file))
        for _ in range(times + 1):
            start = time.perf_counter()
            onnxruntime.LoraAdapter().Load(str(file))
            taken.append(1e3 * (time.perf_counter() - start))
        taken = taken[1:]
        typer.echo(f"{file.stat().st_size / 1e6:.1f} MB: {median(taken):.2f} ms ({min(taken):.2f} to {max(taken):.2f})")


if __name__ == "__main__":
    typer.run(main)
