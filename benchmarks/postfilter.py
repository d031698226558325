"""What a post-filter gains, how wide it should be, and how often it and features take turns.

python -m benchmarks.postfilter          # about 8 minutes on two cores

Each row is one chunk at real bytes, the filter's included, through the whole codec at one effort,
with one thing changed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import records, volumes
from tinc_codec import config
from tinc_codec.bitstream.header import read_stream
from tinc_codec.bitstream.sections import Section
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.fit import filtered
from tinc_codec.fit.postfilter import FilterPlan
from tinc_codec.metrics import measure
from tinc_codec.params import EncodingParams

RATIOS = (64.0, 256.0)
EFFORT = 4


@dataclass(frozen=True)
class Variant:
    """What is changed.

    Attributes
    ----------
    name : str
    turns : tuple of (int, int), optional
        How often features take their turn, and the passes of each.
    widths : tuple of int, optional
        Of the hidden layers; () for no filter.
    """

    name: str
    turns: tuple[int, int] | None = None
    widths: tuple[int, ...] | None = None


VARIANTS = (
    Variant("no filter", widths=()),
    Variant("no turns", turns=(0, 0)),
    Variant("1 turn of 10 passes", turns=(1, 10)),
    Variant("4 turns of 8 passes", turns=(4, 8)),
    Variant("8", widths=(8,)),
    Variant("12, 12", widths=(12, 12)),
    Variant("16, 16", widths=(16, 16)),
    Variant("24, 24", widths=(24, 24)),
)


def changed(variant: Variant) -> ExitStack:
    """Change the codec for a while."""
    stack = ExitStack()
    if variant.turns is not None:
        table = list(filtered._ROUNDS_BY_EFFORT)
        table[EFFORT] = variant.turns
        stack.enter_context(mock.patch.object(filtered, "_ROUNDS_BY_EFFORT", tuple(table)))
    if variant.widths is not None:
        original = filtered.plan_of

        def plan_of(effort: int, limit_bytes: int, voxels: int) -> FilterPlan | None:
            plan = original(effort, limit_bytes, voxels)
            if plan is None or not variant.widths:
                return None
            return FilterPlan(variant.widths, plan.steps)

        stack.enter_context(mock.patch.object(filtered, "plan_of", plan_of))
    return stack


def measure_variants(volume: np.ndarray, ratio: float) -> Iterator[dict[str, Any]]:
    """Encode a volume in all ways."""
    params = EncodingParams(ratio=ratio, model="features", effort=EFFORT)
    for variant in VARIANTS:
        with changed(variant):
            start = time.perf_counter()
            stream = encode_chunk(volume, params)
            encode_s = time.perf_counter() - start
        decode_chunk(stream)
        start = time.perf_counter()
        decoded = decode_chunk(stream)
        decode_s = time.perf_counter() - start
        sections = read_stream(stream, max_decoded_bytes=1 << 40).sections
        yield {
            "variant": variant.name,
            "psnr": round(measure(volume, decoded, None).psnr, 3),
            "size_bytes": len(stream),
            "filter_bytes": len(sections.get(Section.POSTFILTER, b"")),
            "encode_s": round(encode_s, 2),
            "decode_s": round(decode_s, 4),
        }


def main() -> None:
    """Measure central crops of all volumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    volumes.add_arguments(parser)
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS))
    options = parser.parse_args()
    rows = []
    for name in options.volumes:
        volume = volumes.load(name, options.crop, options.data)
        encode_chunk(volume, EncodingParams(ratio=64, model="features", effort=1))
        for ratio in options.ratios:
            for row in measure_variants(volume, ratio):
                rows.append({"volume": name, "shape": volume.shape, "ratio": ratio, **row})
                print(rows[-1], flush=True)
    print(records.save("postfilter", rows, effort=EFFORT, threads=config.resolve_threads()))


if __name__ == "__main__":
    main()
