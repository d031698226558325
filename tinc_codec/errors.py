"""Every error that tinc_codec raises on purpose, and the one warning that it gives."""


class TincError(Exception):
    """Base class of all errors of this package."""


class ConfigError(TincError, ValueError):
    """A parameter or a setting is out of its range."""


class UnsupportedDataError(TincError, TypeError):
    """The array's dtype or shape is not one that this codec stores."""


class TargetError(TincError, ValueError):
    """A promise about size or quality cannot be kept for this chunk."""


class FormatError(TincError, ValueError):
    """A stream is not one that this version can decode."""


class CorruptStreamError(FormatError):
    """A stream contradicts the format or its own checksum."""


class TruncatedStreamError(FormatError):
    """A stream ends before what it declares.

    Attributes
    ----------
    needed : int or None
        Bytes from the start of the stream that are known to be necessary to get further; None
        when unknown. It grows from call to call while a header is fetched piece by piece.
    """

    def __init__(self, message: str, *, needed: int | None = None) -> None:
        super().__init__(message)
        self.needed = needed


class UnsupportedVersionError(FormatError):
    """A stream uses a version or a section that this reader does not know."""


class LimitError(FormatError):
    """A stream declares a decoded size beyond the configured limit."""


class PartialWriteWarning(UserWarning):
    """A part of a chunk that holds lossy data is overwritten, so that the whole is encoded again.

    `warnings.simplefilter("error", PartialWriteWarning)` refuses such writes; nothing of the
    chunk is changed then.
    """
