"""Hand-made rules as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from agents.precision.families import FAMILIES
from agents.precision.heuristics.chance import EqualDuty
from agents.precision.heuristics.static import Static
from agents.precision.known import Known
from agents.precision.rule import Rule
from runtime.precision.plan import PrecisionPlan

STATIC = "static"
"""Family of the rules that never change their plan."""


def saved_rule(rule: Rule) -> dict[str, Any]:
    """Return a rule's family and settings as plain JSON values."""
    family = STATIC if isinstance(rule, Static) else rule.name
    return {"family": family, "settings": _lists(rule.settings())}


def rule_of(name: str, saved: Mapping[str, Any], known: Known) -> Rule:
    """Build a rule from `saved_rule`'s form.

    Args:
        name: What it is called in tables.
        saved: `family` and `settings`.
        known: What it starts from.

    Raises:
        ValueError: An unknown family, or settings that it does not have.
    """
    family, settings = saved.get("family"), dict(saved.get("settings", {}))
    try:
        if family == STATIC:
            return Static(name, PrecisionPlan.from_mapping(settings))
        if family == EqualDuty.name:
            arrays = {key: np.array(settings.pop(key), np.float64) for key in ("plans", "duty")}
            return EqualDuty(**arrays, **settings)
        if family in FAMILIES:
            kind: Any = FAMILIES[family]
            known_names = [f.name for f in dataclasses.fields(kind)]
            return kind(**{"known": known} if "known" in known_names else {}, **_tuples(settings))
    except (KeyError, TypeError) as error:
        raise ValueError(f"rule {name!r}: {error}") from error
    expected = [STATIC, EqualDuty.name, *FAMILIES]
    raise ValueError(f"rule {name!r} is of family {family!r}; expected one of {expected}")


def _tuples(value: Any) -> Any:
    """Return nested lists as nested tuples, as rules have them."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    """Return nested tuples as nested lists, as a JSON file gives them back."""
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return list(map(_lists, value)) if isinstance(value, tuple | list) else value
