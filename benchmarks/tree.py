"""What the tree of sine layers reaches: quality at a size, bits per weight, speeds.

python -m benchmarks.tree                 # the cases of the table, about 6 minutes on two cores
python -m benchmarks.tree --case mri_t1:64:64:9 --name tree_effort9
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import records, volumes
from benchmarks.peers import PEERS, SizeNotReached
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream, write_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.fit import encoder
from tinc_codec.metrics import psnr
from tinc_codec.model.evaluate import evaluate
from tinc_codec.model.section import read_tree
from tinc_codec.params import EncodingParams
from tinc_codec.volume.chunk import allocate, valid_view

CASES = (
    "mri_t1:64:64:4",
    "mri_flair:64:64:4",
    "mni152_t1:64:64:4",
    "ct_cranium:64:64:4",
    "mri_t1:128:256:4",
    "mri_t1:128:64:2",
    "mri_t1:64:64:6",
    "mri_flair:64:64:6",
    "ct_angio:64:64:4",
)
"""volume : edge of the central crop : ratio : effort."""
WARM_UP = EncodingParams(ratio=8, effort=0)
DECODES = 7


class FloatQuality:
    """Records the PSNR of a fit's weights before they are rounded, while a chunk is encoded."""

    def __enter__(self) -> FloatQuality:
        self._fill = encoder.fill_limit
        encoder.fill_limit = self._spy
        return self

    def __exit__(self, *_: object) -> None:
        encoder.fill_limit = self._fill

    def _spy(self, task: Any, parameters: Any, codes: Any, scaling: Any) -> bytes:
        self.task, self.parameters, self.scaling = task, parameters, scaling
        return self._fill(task, parameters, codes, scaling)

    def psnr(self, volume: np.ndarray, info: Any) -> float:
        """Evaluate the unrounded weights on the volume."""
        out = allocate(info)
        view = valid_view(out, info)
        evaluate(self.task.shape, self.parameters, self.scaling, info, view, "cpu", 1)
        return psnr(volume, out)


def run_case(case: str, data: Any, peers: bool) -> dict[str, Any]:
    """Encode and decode one case and describe it."""
    name, edge, ratio, effort = case.split(":")
    volume = volumes.load(name, int(edge), data)
    params = EncodingParams(ratio=float(ratio), effort=int(effort))
    with FloatQuality() as fitted:
        start = time.perf_counter()
        stream = encode_chunk(volume, params)
        encode_s = time.perf_counter() - start
    header = read_stream(stream, max_decoded_bytes=1 << 32)
    section = read_tree(header.sections[Section.TREE], header.info.batched_shape[1:], 1)
    times = []
    for _ in range(DECODES):
        start = time.perf_counter()
        decode_chunk(stream)
        times.append(time.perf_counter() - start)
    decode_s = sorted(times)[DECODES // 2]
    budget = int(volume.nbytes / float(ratio))
    assert write_stream(header) == stream
    row = {
        "volume": name,
        "shape": volume.shape,
        "dtype": str(volume.dtype),
        "ratio": float(ratio),
        "effort": int(effort),
        "bytes": len(stream),
        "budget_used": round(len(stream) / budget, 4),
        "psnr": round(header.psnr, 3),
        "psnr_float_weights": round(fitted.psnr(volume, header.info), 3),
        "max_error": header.max_error,
        "layers": section.shape.layers,
        "widths": [row[0] for row in section.shape.widths],
        "weights": section.shape.parameter_count,
        "bits_per_weight": round(8 * len(section.coded) / section.shape.parameter_count, 3),
        "multiply_adds_per_voxel": section.shape.multiply_adds,
        "encode_s": round(encode_s, 2),
        "decode_s": round(decode_s, 4),
        "decode_mvoxels_per_s": round(volume.size / decode_s / 1e6, 1),
    }
    for peer in ("SPERR", "HEVC") if peers else ():
        try:
            row[peer] = round(PEERS[peer](volume, budget).psnr, 2)
        except SizeNotReached:
            row[peer] = None
    return row


def tabulate(rows: list[Mapping[str, Any]]) -> Table:
    """Lay the results out for a terminal."""
    table = Table(title=f"TINC tree, device {config.resolve_device()}")
    columns = ("volume", "shape", "ratio", "effort", "bytes", "budget_used", "psnr")
    columns += ("psnr_float_weights", "SPERR", "HEVC", "bits_per_weight", "widths")
    columns += ("encode_s", "decode_mvoxels_per_s")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    return table


def main() -> None:
    """Run the cases, print a table and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--case", nargs="+", default=list(CASES))
    parser.add_argument("--name", default="tree", help="stem of the file of results")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    # Compile first: what is measured is the codec, not the compiler.
    decode_chunk(encode_chunk(volumes.load("mri_t1", 16, options.data), WARM_UP))
    rows: list[Mapping[str, Any]] = []
    for case in options.case:
        rows.append(run_case(case, options.data, not options.no_peers))
        Console().print(rows[-1])
        records.save(options.name, rows)
    Console(width=200).print(tabulate(rows))


if __name__ == "__main__":
    main()
