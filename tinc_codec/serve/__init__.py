"""Arrays over HTTP, as an ordinary Zarr that clients read who know nothing of this package.

It needs aiohttp: `pip install 'tinc_codec[serve]'`.
"""

from tinc_codec.errors import ConfigError

try:
    import aiohttp as _aiohttp  # noqa: F401
except ImportError as error:
    raise ConfigError("serving needs aiohttp: pip install 'tinc_codec[serve]'") from error

from tinc_codec.serve.application import VIEWER_ORIGINS, app
from tinc_codec.serve.limits import Limits
from tinc_codec.serve.server import background, serve
from tinc_codec.serve.viewers import viewer_links

__all__ = ["VIEWER_ORIGINS", "Limits", "app", "background", "serve", "viewer_links"]
