"""Agents of staged precision."""

from __future__ import annotations
