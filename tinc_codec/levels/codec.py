"""`TINCLevelCodec`: an array without chunks of its own, read from those of another one.

Zarr hands a codec that decodes in part the place where a chunk would be, whether there is one or
not. This codec looks at the same place of the array that it is a level of, in the same store, and
decodes that chunk at a lower resolution. So any reader of Zarr v3 arrays reads levels, from any
store, and no voxel is stored twice.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import zarr
from zarr.abc.codec import (
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
)
from zarr.storage import StorePath

from tinc_codec.errors import ConfigError
from tinc_codec.levels.reading import read_selected
from tinc_codec.levels.source import Source, place_of_source
from tinc_codec.model.levels import MAX_LEVEL, level_shape

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "tinc_level"


@dataclass(frozen=True)
class TINCLevelCodec(
    ArrayBytesCodec, ArrayBytesCodecPartialDecodeMixin, ArrayBytesCodecPartialEncodeMixin
):
    """Read level k of a TINC array: 2^k times smaller along its last three axes.

    Parameters
    ----------
    level : int
        1 to 30.
    source : str
        Where the array is, as a path from this one: "../0" beside it; "." means that the metadata
        of this one exists in memory only and its path is the other's (`open_level`).

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    level: int
    source: str
    _opened: dict[Any, tuple[Any, asyncio.Task[Source]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    is_fixed_size = False

    def __post_init__(self) -> None:
        if type(self.level) is not int or not 1 <= self.level <= MAX_LEVEL:
            raise ConfigError(f"level={self.level!r} is not an integer in 1 to {MAX_LEVEL}")
        if not isinstance(self.source, str) or not self.source or self.source.startswith("/"):
            raise ConfigError(f"source={self.source!r} is not a path from the level's own array")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.level, self.source)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TINCLevelCodec:
        """Build the codec from its named configuration in `zarr.json`.

        Raises
        ------
        ConfigError
            If the name or a parameter is not ours, or a value is out of range.
        """
        found = data.get("configuration", {})
        if data.get("name") != NAME or sorted(found) != ["level", "source"]:
            raise ConfigError(
                f"codec {data!r} is not {{'name': {NAME!r}, 'configuration': {{'level': ..., "
                "'source': ...}}"
            )
        return cls(found["level"], found["source"])

    def to_dict(self) -> dict[str, Any]:
        """Return the named configuration stored in `zarr.json`."""
        return {"name": NAME, "configuration": {"level": self.level, "source": self.source}}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> TINCLevelCodec:
        """Return the codec itself; nothing of it depends on the array."""
        return self

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Raise NotImplementedError: nothing is ever encoded."""
        raise NotImplementedError

    async def decode_partial(
        self, batch_info: Iterable[tuple[ByteGetter, Any, ArraySpec]]
    ) -> list[NDBuffer | None]:
        """Fetch chunks of the source and decode what is selected of their level.

        Parameters
        ----------
        batch_info : iterable of (byte getter, selection, chunk spec)

        Returns
        -------
        list of NDBuffer or None
            `chunk[selection]` each; None where the source has no such chunk.

        Raises
        ------
        ConfigError
            If there is no source, or it is not the one that the level was made of.
        FormatError
            If a chunk is damaged.
        """
        gate = asyncio.Semaphore(zarr.config.get("async.concurrency"))
        return await asyncio.gather(*(self._decode_one(*item, gate) for item in batch_info))

    async def _decode_partial_single(
        self, byte_getter: ByteGetter, selection: Any, chunk_spec: ArraySpec
    ) -> NDBuffer | None:
        (decoded,) = await self.decode_partial([(byte_getter, selection, chunk_spec)])
        return decoded

    async def _decode_one(
        self, getter: ByteGetter, selection: Any, spec: ArraySpec, gate: asyncio.Semaphore
    ) -> NDBuffer | None:
        path, position = _place_of(getter, len(spec.shape))
        source = await self._source(getter.store, path)  # type: ignore[attr-defined]
        self._check_source(source, spec)
        parts = selection if isinstance(selection, tuple) else (selection,)
        decoded = await read_selected(source, self.level, position, parts, spec, gate)
        return None if decoded is None else spec.prototype.nd_buffer.from_numpy_array(decoded)

    async def _source(self, store: Any, path: str) -> Source:
        """Open the array that a level at `path` belongs to, once for as long as the codec lives."""
        loop = asyncio.get_running_loop()
        key = id(store), path, loop
        found = self._opened.get(key)
        if found is None:
            # The store is kept with the task, so that its id stays its own.
            found = self._opened[key] = store, loop.create_task(self._open(store, path))
        try:
            return await asyncio.shield(found[1])
        except BaseException:
            if found[1].done():
                self._opened.pop(key, None)
            raise

    async def _open(self, store: Any, path: str) -> Source:
        place = place_of_source(StorePath(store, path), self.source)
        try:
            opened = await zarr.AsyncArray.open(place, zarr_format=3)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(
                f"level {self.level}: its source {place} is no array of the Zarr v3 format: {error}"
            ) from error
        return Source.of(zarr.Array(opened))

    def _check_source(self, source: Source, spec: ArraySpec) -> None:
        found = level_shape(source.object_shape, self.level)
        dtype = spec.dtype.to_native_dtype()
        if found != spec.shape or not np.can_cast(source.layout.dtype, dtype, "equiv"):
            raise ConfigError(
                f"level {self.level} has chunks of shape {spec.shape} and dtype {dtype}, but those "
                f"of its source {source.layout.name} would be {found} and {source.layout.dtype}: "
                "the source was made anew; add the levels again"
            )

    async def encode(
        self, chunks_and_specs: Iterable[tuple[NDBuffer | None, ArraySpec]]
    ) -> NoReturn:
        """Refuse.

        Raises
        ------
        ConfigError
            Always, before anything is stored.
        """
        self._refuse()

    async def encode_partial(self, batch_info: Iterable[Any]) -> NoReturn:
        """Refuse, also what would only delete a chunk.

        Raises
        ------
        ConfigError
            Always, before anything is stored.
        """
        self._refuse()

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NoReturn:
        self._refuse()

    async def _encode_partial_single(self, *_: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError(
            f"level {self.level} cannot be written: it is computed from level 0, which can"
        )

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        raise ConfigError(
            f"level {self.level}: chunk bytes of its own were handed over; {NAME!r} must be the "
            "only codec of its array"
        )


def _place_of(getter: ByteGetter, ndim: int) -> tuple[str, tuple[int, ...]]:
    """Tell from a chunk's place the path of its array and its coordinates.

    Raises
    ------
    ConfigError
        If it is no place in a store with the default chunk keys.
    """
    if not isinstance(getter, StorePath):
        raise ConfigError(f"{NAME!r} must be the only codec of its array, outside of shards")
    found = re.fullmatch(r"(?:(.*)/)?c((?:[/.]\d+)*)", getter.path)
    numbers = () if found is None else tuple(int(n) for n in re.findall(r"\d+", found[2]))
    if found is None or len(numbers) != ndim:
        raise ConfigError(
            f"{getter.path!r} is not the key of a chunk of {ndim} axes in the default chunk key "
            "encoding, which levels need"
        )
    return found[1] or "", numbers
