"""Which of several arrays in a file is meant."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tinc_codec.errors import ConfigError

__all__ = ["choose", "listed"]

_MANY = 20


def choose(
    location: str,
    candidates: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    variable: str | None,
) -> str:
    """Return the name that is asked for, or that of the only array of three axes and more.

    Parameters
    ----------
    location : str
        For the messages.
    candidates : mapping of name to (shape, dtype)
    variable : str or None

    Raises
    ------
    ConfigError
        If there is no such array, none at all or several; lists those that there are.
    """
    if variable is not None:
        wanted = variable.strip("/")
        if wanted not in candidates:
            raise ConfigError(f"{location} has no array {variable!r}; it has {listed(candidates)}")
        return wanted
    # An array of two axes is meant only where there is nothing else.
    for least in (3, 2):
        found = {name: facts for name, facts in candidates.items() if len(facts[0]) >= least}
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise ConfigError(
                f"{location} has several arrays: {listed(found)}; choose one by its name "
                "(variable=, --variable)"
            )
    raise ConfigError(f"{location} has no array of 2 or more axes; it has {listed(candidates)}")


def listed(candidates: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    """Return names with shapes and types, for a message."""
    if not candidates:
        return "no arrays"
    names = [
        f"{name} ({' × '.join(map(str, shape)) or 'scalar'}, {dtype})"
        for name, (shape, dtype) in candidates.items()
    ]
    rest = [f"{len(names) - _MANY} more"] if len(names) > _MANY else []
    return ", ".join(names[:_MANY] + rest)
