"""Staged precision: networks cut into stages, and what runs, watches and steers their levels."""
