"""What the limits of all guards share: their form as plain JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Self


@dataclass(frozen=True)
class Limits:
    """Limits of a guard: a frozen dataclass of numbers, tuples of numbers and enumerations."""

    def to_mapping(self) -> dict[str, Any]:
        """Return the limits as plain JSON values (infinity as null)."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build limits from `to_mapping`'s form.

        Raises:
            ValueError: Unknown keys or impossible limits.
        """
        try:
            values: dict[str, Any] = {k: math.inf if v is None else v for k, v in mapping.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"not guard limits: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    return None if value == math.inf else value
