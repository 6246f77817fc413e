"""Staged precision as a Gymnasium environment."""
