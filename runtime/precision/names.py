"""Wording errors about names that are in no registry."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" if one of the known names is close, else nothing."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


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
    hint = closest(given, names) or ";"
    return ValueError(f"unknown {what} {given!r}{hint} expected one of {', '.join(names)}")
