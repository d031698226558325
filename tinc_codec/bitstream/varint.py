"""Unsigned integers of variable length: seven bits a byte, least significant first (LEB128)."""

MAX_VARINT_BYTES = 9
MAX_VARINT = (1 << 7 * MAX_VARINT_BYTES) - 1


def varint_size(value: int) -> int:
    """Count the bytes of `write_varint(value)`, 1 to 9."""
    return max(1, -(-value.bit_length() // 7))


def write_varint(value: int) -> bytes:
    """Encode an integer from 0 to 2**63 - 1 in as few bytes as it takes.

    Raises
    ------
    ValueError
        If the value is out of that range.

    References
    ----------
    `docs/format.md` §1
    """
    if not 0 <= value <= MAX_VARINT:
        raise ValueError(f"varint: {value} is not in 0 to 2**63 - 1")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
