"""`TINCLevelCodec`: an array without chunks of its own, read from those of another one.

Zarr hands a codec that decodes in part the place where a chunk would be, whether there is one or
not. This codec looks at the same place of the array that it is a level of, in the same store, and
decodes that chunk at a lower resolution. So any reader of Zarr v3 arrays reads levels, from any
store, and no voxel is stored twice.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import zarr
from zarr.abc.codec import (
    ArrayBytesCodec,
    ArrayBytesCodecPartialDecodeMixin,
    ArrayBytesCodecPartialEncodeMixin,
)
from zarr.storage import FsspecStore, LocalStore, ObjectStore, StorePath

from tinc_codec.errors import (
    ConfigError,
    CorruptStreamError,
    UnsupportedDataError,
)
from tinc_codec.inspection.access import Fetch, inner_coordinates, naming, store_access
from tinc_codec.inspection.layout import ArrayLayout, array_layout
from tinc_codec.model.levels import MAX_LEVEL, level_shape

if TYPE_CHECKING:
    from zarr.abc.store import ByteGetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

NAME = "tinc_level"


@dataclass(frozen=True, eq=False)
class Source:
    """The array that a level is decoded from.

    Attributes
    ----------
    array : zarr.Array
    layout : ArrayLayout
    fetch : coroutine function
        See `inspection.access.store_access`.
    """

    array: Any
    layout: ArrayLayout
    fetch: Fetch

    @classmethod
    def of(cls, array: Any) -> Source:
        """Describe an open array of the v3 format.

        Raises
        ------
        UnsupportedDataError
            If it is of the v2 format, or its chunks are not TINC streams that can be read alone.
        """
        if array.metadata.zarr_format != 3:
            raise UnsupportedDataError(
                f"{array.store_path}: is in the Zarr v2 format, in which a reader decodes whole "
                "chunks and no level can be found; store it in the v3 format to have levels"
            )
        grid = array.metadata.to_dict()["chunk_grid"]
        if grid["name"] != "regular":
            raise UnsupportedDataError(
                f"{array.store_path}: has a chunk grid {grid['name']!r}; levels need a regular one"
            )
        return cls(array, array_layout(array), store_access(array)[0])

    @property
    def object_shape(self) -> tuple[int, ...]:
        """Voxels of what the store keeps under one key: a chunk, or a shard."""
        return self.layout.shard_shape or self.layout.chunk_shape


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
        decoded = await _read_selected(source, self.level, position, parts, spec, gate)
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
            f"level {self.level} cannot be written: it is computed from {self.source!r}, which can"
        )

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        raise ConfigError(
            f"level {self.level}: chunk bytes of its own were handed over; {NAME!r} must be the "
            "only codec of its array"
        )


def place_of_source(place: StorePath, source: str) -> StorePath:
    """Follow a path from an array, out of its store too where someone opened the array by itself.

    Parameters
    ----------
    place : StorePath
        Of the array.
    source : str
        Relative, with "..".

    Raises
    ------
    ConfigError
        If it leads out of a store that has no outside.
    """
    names, n_out = [name for name in place.path.split("/") if name], 0
    for name in source.split("/"):
        if name == "..":
            n_out += not names
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    store = place.store if n_out == 0 else _enclosing_store(place.store, n_out)
    return StorePath(store, "/".join(names))


def _enclosing_store(store: Any, n_up: int) -> Any:
    """Open a store of the folder so many above that of another one, read-only."""
    if isinstance(store, LocalStore):
        return LocalStore(store.root.absolute().parents[n_up - 1], read_only=True)
    if isinstance(store, FsspecStore):
        path = store.path.rstrip("/").rsplit("/", n_up)[0]
        return FsspecStore(store.fs, read_only=True, path=path)
    inner: Any = getattr(store, "store", None)
    if isinstance(store, ObjectStore) and hasattr(inner, "prefix"):
        # What the stores of obstore for S3, GCS and Azure are made of.
        prefix = str(inner.prefix or "").strip("/")
        if len(prefix.split("/")) >= n_up and prefix:
            options = {
                name: getattr(inner, name, None)
                for name in ("config", "client_options", "retry_options", "credential_provider")
            }
            given = {name: value for name, value in options.items() if value is not None}
            above = "/".join(prefix.split("/")[:-n_up])
            return ObjectStore(type(inner)(prefix=above or None, **given), read_only=True)
    raise ConfigError(
        f"{store}: this level is decoded from an array beside it, which a store opened at the "
        "level itself cannot reach; open the group, then the level in it"
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


async def _read_selected(
    source: Source,
    level: int,
    position: tuple[int, ...],
    selection: tuple[Any, ...],
    spec: ArraySpec,
    gate: asyncio.Semaphore,
) -> np.ndarray | None:
    """Decode what is selected of the level of an object; None where the object is missing."""
    layout = source.layout
    if layout.index is None:
        async with gate:
            data = await source.fetch(position, 0, None)
        if data is None:
            return None
        voxels = await asyncio.to_thread(_decode, layout, level, position, data)
        return np.array(voxels[selection])
    cells = level_shape(layout.chunk_shape, level)
    touched = _touched(selection, cells, layout.index.grid_shape)
    streams = await _fetch_streams(source, position, touched, gate)
    if streams is None:
        return None
    # What is neither selected nor beside it is never touched, and takes no memory.
    joined = np.empty(spec.shape, dtype=layout.dtype)

    async def fill(local: tuple[int, ...], data: bytes | None) -> None:
        place = tuple(slice(i * n, (i + 1) * n) for i, n in zip(local, cells, strict=True))
        if data is None:
            joined[place] = spec.fill_value
            return
        coordinates = inner_coordinates(layout, position, local)
        joined[place] = await asyncio.to_thread(_decode, layout, level, coordinates, data)

    await asyncio.gather(*itertools.starmap(fill, streams.items()))
    return np.array(joined[selection])


def _touched(
    selection: tuple[Any, ...], cells: tuple[int, ...], grid: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """List the chunks of a shard that hold any of a selection."""
    flags = np.zeros(grid, dtype=bool)
    parts = tuple(
        slice(part.start // n, -(-part.stop // n)) if isinstance(part, slice) else part // n
        for part, n in zip(selection, cells, strict=True)
    )
    flags[parts] = True
    return [tuple(place) for place in np.argwhere(flags).tolist()]


async def _fetch_streams(
    source: Source,
    position: tuple[int, ...],
    wanted: Sequence[tuple[int, ...]],
    gate: asyncio.Semaphore,
) -> dict[tuple[int, ...], bytes | None] | None:
    """Fetch streams of a shard: its index and their ranges, or all of it where all are wanted.

    Returns
    -------
    dict of (local coordinates to bytes, None where missing), or None
        None where the shard is missing.
    """
    index = source.layout.index
    assert index is not None

    async def fetch(start: int, stop: int | None) -> bytes | None:
        async with gate:
            return await source.fetch(position, start, stop)

    whole = None
    if len(wanted) == int(np.prod(index.grid_shape)):
        whole = head = await fetch(0, None)
        if whole is not None:
            head = whole[: index.size_bytes] if index.at_start else whole[-index.size_bytes :]
    else:
        head = await fetch(*((0, index.size_bytes) if index.at_start else (-index.size_bytes, 0)))
    if head is None:
        return None
    with naming(f"shard {position} of {source.layout.name}"):
        places = {local: (first, first + n) for local, first, n in index.read(head)}

    async def stream(local: tuple[int, ...]) -> bytes | None:
        if local not in places:
            return None
        start, stop = places[local]
        return await fetch(start, stop) if whole is None else whole[start:stop]

    return dict(zip(wanted, await asyncio.gather(*map(stream, wanted)), strict=True))


def _decode(
    layout: ArrayLayout, level: int, coordinates: tuple[int, ...], data: bytes
) -> np.ndarray:
    """Decode a level of the chunk at some coordinates of the grid of (inner) chunks."""
    from tinc_codec.codec import decode_level

    extent = [
        max(1, min(n - i * c, c))
        for n, i, c in zip(layout.shape, coordinates, layout.chunk_shape, strict=True)
    ]
    stream = data[: len(data) - layout.trailing_bytes]
    with naming(f"chunk {coordinates} of {layout.name}"):
        voxels = decode_level(stream, level, extent)
        _check_decoded(voxels, level, layout)
    return voxels


def _check_decoded(voxels: np.ndarray, level: int, layout: ArrayLayout) -> None:
    expected = level_shape(layout.chunk_shape, level)
    if voxels.shape != expected or not np.can_cast(voxels.dtype, layout.dtype, "equiv"):
        raise CorruptStreamError(
            f"its level {level} has shape {voxels.shape} and dtype {voxels.dtype}, but those of "
            f"the array's chunks have {expected} and {layout.dtype}"
        )
