"""Wording errors about names that are in no registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, given: str, known: Iterable[str]) -> ValueError:
    """Make the error for a name that is not known.

    Args:
        what: The kind of thing, such as `"corruption"`.
        given: What came.
        known: What would have been accepted.

    Returns:
        The error, to be raised by the caller; it names the closest known word.
    """
    names = sorted(set(known))
    matches = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    hint = f"; did you mean {matches[0]!r}?" if matches else ";"
    return ValueError(f"unknown {what} {given!r}{hint} expected one of {', '.join(names)}")
