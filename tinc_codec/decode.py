"""Bytes -> voxels: whole chunks, one after the other on the CPU, in few launches on a GPU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinc_codec import config
from tinc_codec.bitstream.header import Header, read_stream
from tinc_codec.bitstream.sections import MODEL_SECTIONS, Section
from tinc_codec.volume.chunk import allocate, fill_constant, finish, valid_view
from tinc_codec.volume.mask import decode_classes

if TYPE_CHECKING:
    from tinc_codec.model.render import ChunkModel


def decode_streams(streams: Sequence[Any], on_device: bool = False) -> list[Any]:
    """Decode chunks, in their order.

    Parameters
    ----------
    streams : sequence of bytes-like or ndarray of uint8
    on_device : bool
        Whether they become tensors on the device that `config.resolve_device` names, in native
        byte order, instead of arrays.

    Raises
    ------
    FormatError
        See `codec.decode_chunk`.
    """
    limit = config.get().max_decoded_bytes
    headers = [read_stream(data, max_decoded_bytes=limit) for data in streams]
    if not on_device and not any(map(_has_model, headers)):
        return [decode_header(header, 1) for header in headers]
    with config.cpu_slots() as threads:
        device = config.resolve_device()
        if device != "cpu":
            return _decode_on_device(headers, device, threads, on_device)
        # One after the other, so that what is decoded in between is that of one chunk.
        outs = [decode_header(header, threads) for header in headers]
        return [_to_device(out, device) for out in outs] if on_device else outs


def _has_model(header: Header) -> bool:
    return not MODEL_SECTIONS.isdisjoint(header.sections)


def decode_header(header: Header, threads: int) -> np.ndarray:
    """Decode a chunk on the CPU whose bytes are checked.

    Nothing of its size is allocated before its sections are decoded.

    Parameters
    ----------
    header : Header
        From `bitstream.header.read_stream`.
    threads : int

    Raises
    ------
    FormatError
        If a section is damaged.
    """
    classes = _classes(header)
    if not _has_model(header):
        out = allocate(header.info)
        fill_constant(out, header.info)
        return finish(out, header.info, classes)
    from tinc_codec.model.render import read_model

    model = read_model(header, threads)
    assert model is not None
    return _render_on_cpu(model, classes, threads)


def _render_on_cpu(model: "ChunkModel", classes: np.ndarray | None, threads: int) -> np.ndarray:
    from tinc_codec.model.render import render

    out = allocate(model.info)
    view = valid_view(out, model.info)
    render([model], [view], threads)
    return finish(out, model.info, classes, view)


def _decode_on_device(
    headers: Sequence[Header], device: str, threads: int, on_device: bool
) -> list[Any]:
    """Decode chunks in few launches, to arrays on the host or to tensors on the device."""
    from tinc_codec.model.render import correct
    from tinc_codec.model.torch_render import complete, constant, render_together

    outs: list[Any] = [None] * len(headers)
    indices = []
    for index, header in enumerate(headers):
        if Section.LATTICE in header.sections:
            # Each voxel waits for those before: nothing for a GPU.
            out = decode_header(header, threads)
            outs[index] = _to_device(out, device) if on_device else out
        elif _has_model(header):
            indices.append(index)
        elif on_device:
            outs[index] = constant(header.info, _classes(header), device)
        else:
            outs[index] = decode_header(header, 1)
    modelled = [headers[index] for index in indices]
    with config.device_slot():
        limit = config.resolve_device_memory(device)
        for one in render_together(modelled, device, limit, threads, not on_device):
            info, classes = one.model.info, _classes(modelled[one.index])
            if one.values is None:
                out = _render_on_cpu(one.model, classes, threads)
                outs[indices[one.index]] = _to_device(out, device) if on_device else out
            elif on_device:
                outs[indices[one.index]] = complete(one, classes, info, device)
            else:
                out = allocate(info)
                view = valid_view(out, info)
                np.copyto(view, one.values.numpy(), casting="equiv")
                correct(one.model, view)
                outs[indices[one.index]] = finish(out, info, classes, view)
    return outs


def _to_device(array: np.ndarray, device: str) -> Any:
    """Make a tensor of native byte order of an array, on the CPU without a copy where it can."""
    import torch

    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native).to(device)


def _classes(header: Header) -> np.ndarray | None:
    if Section.MASK not in header.sections:
        return None
    return decode_classes(header.sections[Section.MASK], header.info.valid_extent)
