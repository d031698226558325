"""Compress the bundled brain with TINC into a Zarr store, read it back through Dask, show both.

python examples/demo.py            # prints a table, writes demo.zarr and demo.png
python examples/demo.py --help     # other ratios, efforts, chunks and volumes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import matplotlib as mpl
import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

from tinc_codec import TINC, config
from tinc_codec.metrics import measure

mpl.use("Agg")
from matplotlib import pyplot as plt

VOLUME = Path(__file__).parent / "data" / "mni152_t1_crop.npz"
PLANES = ("axial (z)", "coronal (y)", "sagittal (x)")

V2_LINE = """\
zarr.open({path!r}, mode="w", zarr_format=2, shape=volume.shape, chunks={chunks},
          dtype=volume.dtype, compressor={codec!r})[:] = volume"""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds that each step took."""

    encode_s: float
    first_plane_s: float
    decode_s: float


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="TINC on a real volume, in one minute or two")
    parser.add_argument("--volume", type=Path, default=VOLUME, help="*.npz with an array `volume`")
    parser.add_argument("--edge", type=int, help="only a central crop of this many voxels an edge")
    parser.add_argument("--ratio", type=float, default=64)
    parser.add_argument("--effort", type=int, default=4, choices=range(10))
    parser.add_argument(
        "--chunks", type=int, nargs=3, default=(96, 64, 64), metavar=("Z", "Y", "X")
    )
    parser.add_argument("--store", type=Path, default=Path("demo.zarr"))
    parser.add_argument("--picture", type=Path, default=Path("demo.png"))
    return parser.parse_args(arguments)


def load(path: Path, edge: int | None) -> np.ndarray:
    """Load the volume, axes (z, y, x), or its central crop."""
    volume: np.ndarray = np.load(path)["volume"]
    if edge is None:
        return volume
    starts = [max(0, (size - edge) // 2) for size in volume.shape]
    return volume[tuple(slice(start, start + edge) for start in starts)]


def stored_bytes(store: Path) -> tuple[int, int]:
    """Return the bytes on disk of the chunks and of the metadata."""
    files = [path for path in store.rglob("*") if path.is_file()]
    chunks = sum(path.stat().st_size for path in files if path.name != "zarr.json")
    return chunks, sum(path.stat().st_size for path in files) - chunks


def draw(original: np.ndarray, decoded: np.ndarray, title: str, path: Path) -> None:
    """Write the three central planes of the original, the decoded volume and their difference."""
    error = decoded.astype(np.float64) - original
    low, high = float(original.min()), float(original.max())
    bound = float(np.percentile(np.abs(error), 99.9)) or 1.0
    rows = (
        ("original", original, {"cmap": "gray", "vmin": low, "vmax": high}),
        ("decoded", decoded, {"cmap": "gray", "vmin": low, "vmax": high}),
        ("decoded − original", error, {"cmap": "RdBu_r", "vmin": -bound, "vmax": bound}),
    )
    figure, axes = plt.subplots(3, 3, figsize=(11, 9.5), layout="constrained")
    for row, (label, values, style) in zip(axes, rows, strict=True):
        for axis, panel in enumerate(row):
            plane = np.take(values, values.shape[axis] // 2, axis=axis)
            image = panel.imshow(plane, origin="lower", interpolation="nearest", **style)
            panel.set(xticks=[], yticks=[])
            if values is original:
                panel.set_title(PLANES[axis])
        row[0].set_ylabel(label)
        figure.colorbar(image, ax=row, fraction=0.05, pad=0.01)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tabulate(
    volume: np.ndarray, decoded: np.ndarray, store: Path, timings: Timings, asked_ratio: float
) -> Table:
    """Return the table of what was stored, how good it is and how long it took."""
    chunk_bytes, metadata_bytes = stored_bytes(store)
    quality = measure(volume, decoded)
    voxels = volume.size / 1e6
    table = Table(title=f"{volume.shape} {volume.dtype}, TINC(ratio={asked_ratio:g})", min_width=64)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_row("raw bytes", f"{volume.nbytes:,}")
    table.add_row("stored bytes: chunks", f"{chunk_bytes:,}")
    table.add_row("stored bytes: metadata", f"{metadata_bytes:,}")
    table.add_row("ratio (raw / chunks)", f"{volume.nbytes / chunk_bytes:.2f}")
    table.add_row("PSNR", f"{quality.psnr:.2f} dB")
    table.add_row("max error", f"{quality.max_error:g}")
    table.add_row("encode", f"{timings.encode_s:.1f} s = {voxels / timings.encode_s:.3f} Mvoxel/s")
    table.add_row("first plane, lazily", f"{timings.first_plane_s:.2f} s")
    table.add_row("decode", f"{timings.decode_s:.3f} s = {voxels / timings.decode_s:.1f} Mvoxel/s")
    table.add_row("device", config.resolve_device())
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo."""
    options = parse(arguments)
    console = Console()
    volume = load(options.volume, options.edge)
    chunks = tuple(
        min(size, chunk) for size, chunk in zip(volume.shape, options.chunks, strict=True)
    )
    codec = TINC(ratio=options.ratio, effort=options.effort)
    store = options.store

    console.print("Compiling, which the first run on a machine does once ...")
    corner = np.ascontiguousarray(volume[tuple(slice(0, n) for n in chunks)])
    codec.decode(codec.encode(corner))

    console.print(f"Encoding {volume.shape} {volume.dtype} in chunks of {chunks}: a model each ...")
    start = time.perf_counter()
    zarr.create_array(
        store, data=volume, chunks=chunks, serializer=codec, compressors=None, overwrite=True
    )
    encoded = time.perf_counter()

    console.print(
        "Reading it back: dask.array.from_zarr, which knows the codec by its entry point."
    )
    lazy = da.from_zarr(store)
    lazy[volume.shape[0] // 2].compute()
    one_plane = time.perf_counter()
    decoded = lazy.compute()
    end = time.perf_counter()

    timings = Timings(
        encode_s=encoded - start, first_plane_s=one_plane - encoded, decode_s=end - one_plane
    )
    console.print(tabulate(volume, decoded, store, timings, options.ratio))
    title = f"{codec!r}: {measure(volume, decoded).psnr:.2f} dB"
    draw(volume, decoded, title, options.picture)
    console.print(f"The picture: {options.picture}   The store: {store} (Zarr v3 format)")
    console.print("The same in the Zarr v2 format:")
    v2_line = V2_LINE.format(path="brain.zarr", chunks=chunks, codec=codec)
    console.print(v2_line, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
