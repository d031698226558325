"""A logarithmic scale for sums that choose contexts."""

from tinc_codec.kernels import kernel


@kernel(inline="always")
def half_octave(total):  # type: ignore[no-untyped-def]
    """Quantise an integer from 0 on: 0, 1, 2, 3, 4-5, 6-7, 8-11, 12-15, 16-23, ...

    References
    ----------
    `docs/format.md` §11.2
    """
    if total < 4:
        return total
    half = 0
    while total >= 8:
        total >>= 1
        half += 2
    return 4 + half + ((total >> 1) & 1)
