"""Hand-made rules of staged precision."""

from __future__ import annotations
