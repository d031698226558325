"""What Python and NumPy allocate."""

import tracemalloc
from typing import Self


class AllocationMeter:
    """Counts, within a `with` statement, the bytes that are allocated there.

    Attributes
    ----------
    peak_bytes : int
        The most that lived at once; known when the statement is left.
    """

    peak_bytes: int

    def __enter__(self) -> Self:
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
