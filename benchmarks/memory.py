"""How much memory encoding and decoding one chunk take above the interpreter.

python -m benchmarks.memory
"""

from __future__ import annotations

import argparse
import os
import threading
import time
import tracemalloc
from types import TracebackType

from benchmarks import records, volumes
from tinc_codec.codec import decode_chunk, encode_chunk
from tinc_codec.params import EncodingParams

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_POLL_S = 0.0005


def resident_bytes() -> int:
    """Return this process's resident set size."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


class Peak:
    """Follows the resident set size while the body runs; `bytes` is what it grew by at most."""

    def __enter__(self) -> Peak:
        self.bytes, self._before, self._running = 0, resident_bytes(), True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, resident_bytes() - self._before)
            time.sleep(_POLL_S)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._running = False
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes() - self._before)


def main() -> None:
    """Measure one 128^3 chunk; libraries are loaded and kernels compiled beforehand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="directory of *.npz (default: $TINC_DATA)")
    parser.add_argument("--volume", default="mri_t1")
    parser.add_argument("--ratio", type=float, default=64)
    options = parser.parse_args()
    volume = volumes.load(options.volume, 128, options.data)
    params = EncodingParams(ratio=options.ratio, effort=0)
    decode_chunk(encode_chunk(volume[:16, :16, :16], EncodingParams(ratio=8, effort=0)))
    # The steps of a fit all take the same memory: few show the peak.
    with Peak() as encoding:
        stream = encode_chunk(volume, params)
    # The interpreter reuses what the encoder freed: follow the allocations themselves.
    tracemalloc.start()
    decode_chunk(stream)
    decode_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    row = {
        "volume": options.volume,
        "shape": volume.shape,
        "dtype": str(volume.dtype),
        "ratio": options.ratio,
        "chunk_bytes": volume.nbytes,
        "encode_peak_mib": round(encoding.bytes / 2**20, 1),
        "decode_peak_mib": round(decode_peak / 2**20, 1),
        "decode_peak_in_chunks": round(decode_peak / volume.nbytes, 2),
    }
    print(row)
    records.save("memory", [row])


if __name__ == "__main__":
    main()
