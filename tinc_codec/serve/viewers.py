"""Ready-made addresses of viewers that look at what is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

__all__ = ["is_multiscale", "viewer_links"]


def is_multiscale(attributes: Mapping[str, Any]) -> bool:
    """Whether attributes of a group are those of an OME-Zarr image, 0.4 or 0.5."""
    ome = attributes.get("ome")
    return "multiscales" in attributes or (isinstance(ome, Mapping) and "multiscales" in ome)


def viewer_links(url: str, *, multiscale: bool) -> dict[str, str]:
    """Make the links by which viewers open what is served.

    Parameters
    ----------
    url : str
        Where it is served.
    multiscale : bool
        Whether it is an OME-Zarr image: some viewers open nothing else.

    Returns
    -------
    dict of str to str
        Viewer to link.
    """
    name = url.rstrip("/").rpartition("/")[2]
    layer = {"type": "image", "source": f"zarr://{url}", "name": name}
    state = quote(json.dumps({"layers": [layer]}, separators=(",", ":")), safe="")
    links = {
        "Python": f"zarr.open({url!r}, mode='r')",
        "neuroglancer": f"https://neuroglancer-demo.appspot.com/#!{state}",
    }
    if multiscale:
        quoted = quote(url, safe="")
        links |= {
            "vizarr": f"https://hms-dbmi.github.io/vizarr/?source={quoted}",
            "Avivator": f"https://avivator.gehlenborglab.org/?image_url={quoted}",
            "OME-NGFF validator": f"https://ome.github.io/ome-ngff-validator/?source={quoted}",
        }
    return links
