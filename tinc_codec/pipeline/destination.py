"""The store that is written: whose it is, what is in it already, and what makes it complete.

What a run stores first is the group's metadata, with an attribute `stores.RECORD` that says from
what source and with which settings; then the array's metadata; then the chunks, each whole or not
at all; at last "complete" in the record. A chunk is finished when its bytes are in the store and
their checksum is right: there is no journal that could say otherwise.
"""

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinc_codec.errors import ConfigError, FormatError
from tinc_codec.inspection.report import ChunkReport
from tinc_codec.pipeline.objects import read_object
from tinc_codec.pipeline.record import array_metadata, check_record, group_attributes, new_record
from tinc_codec.pipeline.stores import (
    PARTIAL,
    RECORD,
    ROOT_KEYS,
    StoreAddress,
    clear_store,
    local_root,
    locked,
    read_attributes,
    read_key,
    root_entries,
    stored_format,
    write_group,
    write_key,
)
from tinc_codec.pipeline.target import Position, Target
from tinc_codec.pipeline.volumes import Volume

__all__ = ["Destination", "open_destination"]

_CONCURRENT_READS = 32
Found = Callable[[Position, tuple[ChunkReport, ...], int], None]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A destination that this run may write to.

    Attributes
    ----------
    address : StoreAddress
    store : zarr.abc.store.Store
    target : Target
    record : mapping
        As it stands in the store, apart from "complete".
    final_record : mapping
        As it is to stand there in the end: with the dates that the source has now.
    compare : bool
        Whether the source may have changed since the chunks that are there were made.
    """

    address: StoreAddress
    store: Any
    target: Target
    record: Mapping[str, Any]
    final_record: Mapping[str, Any]
    compare: bool

    def scan(self, found: Found) -> int:
        """Read all chunks that are there, and report those that are whole.

        Parameters
        ----------
        found : callable
            Is given the position, the reports of its chunks and its size in bytes.

        Returns
        -------
        int
            How many are there and damaged; they are to be made anew.
        """
        from zarr.core.sync import sync

        return sync(_scan(self.store, self.target, found))

    def begin(self) -> None:
        """Take "complete" back, if it is there: chunks are going to be written.

        Raises
        ------
        ConfigError
            If another version of this package has made the others.
        """
        if self.record["version"] != version("tinc_codec"):
            raise ConfigError(
                f"{self.address} was made by tinc_codec {self.record['version']} and lacks chunks "
                f"that {version('tinc_codec')} might make otherwise; use the version that made it, "
                "or start anew with overwrite=True (--overwrite)"
            )
        attributes = read_attributes(self.store, self.target.zarr_format)
        if attributes.get(RECORD, {}).get("complete"):
            self._write({**attributes, RECORD: {**self.record, "complete": False}})

    def finish(self) -> None:
        """Add the levels and say that everything is there."""
        attributes = read_attributes(self.store, self.target.zarr_format)
        if attributes.get(RECORD) != {**self.final_record, "complete": True}:
            if self.target.levels:
                _add_levels(self.store, self.target.levels)
                attributes = read_attributes(self.store, self.target.zarr_format)
            self._write({**attributes, RECORD: {**self.final_record, "complete": True}})
        self.clean()

    def clean(self) -> None:
        """Remove what killed processes have left half written; only local stores have such."""
        root = local_root(self.address)
        if root is not None:
            for folder, _, names in os.walk(root):
                for name in filter(PARTIAL.fullmatch, names):
                    Path(folder, name).unlink(missing_ok=True)

    def _write(self, attributes: Mapping[str, Any]) -> None:
        write_group(self.store, self.target.zarr_format, attributes)


@contextmanager
def open_destination(
    address: StoreAddress,
    target: Target,
    volume: Volume,
    *,
    overwrite: bool,
) -> Iterator[Destination]:
    """Create a destination or go on with one; nobody else on this machine writes it meanwhile.

    Parameters
    ----------
    address : StoreAddress
    target : Target
    volume : Volume
        Its identity and what it says of itself are stored along.
    overwrite : bool
        Remove what is there first, if it is Zarr.

    Yields
    ------
    Destination

    Raises
    ------
    ConfigError
        If another run is writing it; if it holds something else, or was begun with other settings
        or another source: names what differs, what was and what is.
    """
    new = new_record(target, volume)
    attributes = group_attributes(target, volume, new)
    documents = array_metadata(target, volume)
    with locked(local_root(address)):
        store = address.open()
        entries = root_entries(store)
        zarr_format = stored_format(store)
        found = {} if zarr_format is None else read_attributes(store, zarr_format)
        is_zarr = any(key in entries for key in ROOT_KEYS)
        is_empty = not [name for name in entries if name not in (".zgroup", ".zattrs", "zarr.json")]
        if overwrite and entries:
            if not is_zarr:
                raise ConfigError(
                    f"{address} is no Zarr and is not overwritten; it holds {entries[:3]}"
                )
            clear_store(store, entries)
            entries, found, is_empty = [], {}, True
        record = found.get(RECORD)
        if isinstance(record, Mapping) and "settings" in record:
            compare = check_record(address, record, new)
            record = {key: value for key, value in record.items() if key != "complete"}
        elif is_empty and not found and ".zarray" not in entries:
            write_group(store, target.zarr_format, attributes)
            compare, record = False, new
        else:
            raise ConfigError(
                f"{address} holds something that `compress` has not written; choose another "
                "destination" + (", or overwrite=True (--overwrite)" if is_zarr else "")
            )
        for key, data in documents:
            if read_key(store, key) is None:
                write_key(store, key, data)
        destination = Destination(
            address=address,
            store=store,
            target=target,
            record=record,
            final_record={**record, "source": new["source"]},
            compare=compare,
        )
        destination.clean()
        yield destination


def _add_levels(store: Any, n_levels: int) -> None:
    from tinc_codec.levels import add_levels

    add_levels(store, n_levels)


async def _scan(store: Any, target: Target, found: Found) -> int:
    from zarr.buffer.cpu import buffer_prototype

    keys = store.list_prefix(target.prefix)
    turn = asyncio.Lock()
    n_damaged = 0

    async def work() -> None:
        nonlocal n_damaged
        while True:
            # One generator feeds all, so that a million keys are never in memory.
            async with turn:
                key = await anext(keys, None)
            if key is None:
                return
            position = target.position(key)
            buffer = None if position is None else await store.get(key, buffer_prototype)
            if position is None or buffer is None:
                continue
            data = buffer.to_bytes()
            try:
                chunks = read_object(data, position, target)
            except FormatError:
                n_damaged += 1
            else:
                found(position, chunks, len(data))

    await asyncio.gather(*(work() for _ in range(_CONCURRENT_READS)))
    return n_damaged
