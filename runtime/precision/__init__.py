"""Staged precision: a chain of stages, each run at its own level."""
