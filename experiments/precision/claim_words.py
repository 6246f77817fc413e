"""Words and names that claims on staged precision share."""

from __future__ import annotations

from pathlib import Path

from experiments.claim_maker import ClaimMaker


def source_of(path: Path, make: ClaimMaker) -> str:
    """Return where a table lies in the reference folder."""
    return path.relative_to(make.reference).as_posix()


def label_of(folder: Path) -> str:
    """Word network and kind of processor of a folder."""
    return f"{folder.name} on {folder.parent.name}"


def id_of(folder: Path) -> str:
    """Return what ids of claims on a folder have in common: kind of processor and network."""
    return dashed(f"{folder.parent.name}.{folder.name}")


def dashed(name: str) -> str:
    """Return a name as ids of claims have it."""
    return name.replace("_", "-").replace(" ", "-")
