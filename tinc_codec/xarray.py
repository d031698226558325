"""xarray: attributes that tell the readers of a Dataset which of its variables are lossy.

Storing and reading need nothing from here. CF (1.12 and later, section 8.4) records quantisation
by a `quantization` attribute on the variable, which names a container variable with `algorithm`
and `implementation`. Its algorithms are four ways of rounding floats, its parameters are counts of
bits and digits; neither describes this codec, so the same structure is written here under a name
of its own and no CF reader is told what is not true.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tinc_codec.errors import ConfigError
from tinc_codec.params import EncodingParams

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["record_lossiness"]

_LINK = "lossy_compression"
_ALGORITHM = "tinc"
_COMMENT = (
    "Variables whose lossy_compression attribute names this one are decoded from a lossy "
    "compression and differ from what was stored, as far as their lossy_compression_* attributes "
    "allow: encoded bytes at most raw bytes / ratio, PSNR in dB at least minimum_psnr, absolute "
    "error in units of the variable at most maximum_absolute_error, each for every chunk. "
    "Positions of NaN and infinity are exact. generations counts how often it was so stored."
)


def record_lossiness(
    dataset: xr.Dataset,
    encoding: Mapping[str, Mapping[str, Any]],
    *,
    container: str = "tinc_info",
) -> xr.Dataset:
    """Return a dataset whose attributes say which variables `encoding` stores with TINC, and how.

    ``record_lossiness(dataset, encoding).to_zarr(path, encoding=encoding)`` writes them along.

    Parameters
    ----------
    dataset : xarray.Dataset
        It is left as it is; the data are shared with the result.
    encoding : mapping
        What `to_zarr` is given: per variable `serializer`, `compressors` or `compressor`.
    container : str
        Name of the scalar variable that describes the algorithm.

    Returns
    -------
    xarray.Dataset
        Each variable with a TINC codec has `lossy_compression`, the container's name;
        `lossy_compression_generations`; and what is promised: `lossy_compression_ratio`,
        `lossy_compression_minimum_psnr` in dB or `lossy_compression_maximum_absolute_error` in
        units of the variable (of the unpacked one, where `scale_factor` packs it). Promises hold
        against the values of the latest generation before encoding. Other variables, and a
        dataset without such a codec, come back unchanged.

    Raises
    ------
    ConfigError
        If `encoding` names a variable that is not there, or `container` one that is something
        else.

    References
    ----------
    CF Conventions 1.12, section 8.4, "Lossy Compression via Quantization".
    """
    result = dataset.copy()
    lossy = False
    for name, options in encoding.items():
        if name not in dataset.variables:
            raise ConfigError(f"encoding names {name!r}, which is not a variable of the dataset")
        params = _find_params(options)
        if params is not None:
            attributes = result.variables[name].attrs
            generations = int(attributes.get(f"{_LINK}_generations", 0)) + 1
            for key in [key for key in attributes if str(key).startswith(_LINK)]:
                del attributes[key]
            attributes[_LINK] = container
            attributes[f"{_LINK}_generations"] = generations
            attributes.update(_promise(params, abs(float(options.get("scale_factor", 1.0)))))
            lossy = True
    return _with_container(result, container) if lossy else result


def _find_params(options: Mapping[str, Any]) -> EncodingParams | None:
    for key in ("serializer", "compressors", "compressor"):
        value = options.get(key)
        for codec in value if isinstance(value, list | tuple) else [value]:
            params = getattr(codec, "params", None)
            if isinstance(params, EncodingParams):
                return params
            if isinstance(codec, Mapping) and codec.get("name") == _ALGORITHM:
                return EncodingParams.from_config(codec.get("configuration", {}))
    return None


def _promise(params: EncodingParams, scale: float) -> dict[str, float]:
    if params.ratio is not None:
        return {f"{_LINK}_ratio": params.ratio}
    if params.psnr is not None:
        return {f"{_LINK}_minimum_psnr": params.psnr}
    assert params.max_error is not None
    return {f"{_LINK}_maximum_absolute_error": params.max_error * scale}


def _with_container(dataset: xr.Dataset, container: str) -> xr.Dataset:
    import xarray as xr

    if container in dataset.variables or container in dataset.dims:
        found = dataset.variables.get(container)
        if found is None or found.attrs.get("algorithm") != _ALGORITHM:
            raise ConfigError(f"container={container!r} is taken in the dataset; choose another")
    attributes = {
        "algorithm": _ALGORITHM,
        "implementation": f"tinc_codec version {version('tinc_codec')}",
        "references": "https://arxiv.org/abs/2211.06689",
        "comment": _COMMENT,
    }
    # It holds no data; CF leaves its type open.
    return dataset.assign({container: xr.Variable((), 0, attributes)})
