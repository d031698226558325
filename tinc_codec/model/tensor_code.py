"""How a tensor of weights is coded, in a few bytes before the codes: step and symbols' model."""

from tinc_codec.bitstream.reader import ByteReader
from tinc_codec.bitstream.varint import write_varint
from tinc_codec.entropy.weights import MAX_MAGNITUDE, SymbolModel
from tinc_codec.errors import CorruptStreamError

_FAMILY_BIT = 0x80


def write_tensor_code(step_code: int, model: SymbolModel) -> bytes:
    """Encode a tensor's step code and model.

    References
    ----------
    `docs/format.md` §7, §13
    """
    head = bytes([step_code, model.scale, model.zero | _FAMILY_BIT * model.family])
    return head + write_varint(model.magnitude)


def read_tensor_code(reader: ByteReader, section: str = "") -> tuple[int, SymbolModel]:
    """Decode what `write_tensor_code` wrote.

    Parameters
    ----------
    reader : ByteReader
    section : str
        Begins the messages of errors.

    Raises
    ------
    FormatError
        If it is cut off, or its magnitude out of range.
    """
    code = reader.read_u8(f"{section}step code")
    scale = reader.read_u8(f"{section}scale code")
    zero = reader.read_u8(f"{section}zero code")
    magnitude = reader.read_varint(f"{section}magnitude")
    if magnitude > MAX_MAGNITUDE:
        raise CorruptStreamError(f"{section}magnitude {magnitude} above {MAX_MAGNITUDE}")
    return code, SymbolModel(zero // _FAMILY_BIT, scale, zero % _FAMILY_BIT, magnitude)
