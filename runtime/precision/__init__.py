"""Staged precision: a network as a chain of stages, each runnable at several levels."""
