"""Staged precision on a real machine: plans, snapshots, guards, banks of variants."""
