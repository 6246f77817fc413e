"""What the weights of all rewards have in common."""

from __future__ import annotations

from collections.abc import Mapping


def refuse_negative(weights: Mapping[str, float]) -> None:
    """Refuse weights (by name) that are no numbers >= 0.

    Raises:
        ValueError: Names the weight.
    """
    for name, value in weights.items():
        if not value >= 0.0:
            raise ValueError(f"reward {name} is {value}; expected a number >= 0")
