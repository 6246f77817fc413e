"""Data sets of the staged networks: inputs, labels, and a split that never changes.

Three parts: `train`; `calibration`, which ranges, levels and tables are chosen on; `validation`,
held out, which results are reported on. Samples are ordered by a hash of their content, so any
beginning of a part is a fair sample of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.errors import ConfigError, unknown_name

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


class DataError(ConfigError):
    """A data set that is not there, or is not what its source describes."""


@dataclass(frozen=True, eq=False)
class Part:
    """Samples with their labels.

    Attributes:
        x: float32 [n, ...], images [n, c, h, w] in [0, 1] or waves [n, 1, t] in [-1, 1].
        y: int64 [n], class of each.
    """

    x: Floats
    y: Labels

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int | None) -> Part:
        """Return the first n samples, or all of them for None."""
        return self if n is None else Part(self.x[:n], self.y[:n])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set in three parts.

    Attributes:
        name: What it is called.
        classes: Names of the classes.
        train: Learned from.
        calibration: Chosen on.
        validation: Reported on.
    """

    name: str
    classes: tuple[str, ...]
    train: Part
    calibration: Part
    validation: Part

    def first(self, n: int | None) -> DataSet:
        """Return the same with at most n samples in each part."""
        parts = {name: getattr(self, name).first(n) for name in PARTS}
        return replace(self, **parts)

    def sha256(self) -> str:
        """Return the SHA-256 of all samples and labels, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for name in PARTS:
            part: Part = getattr(self, name)
            digest.update(np.ascontiguousarray(part.x).data)
            digest.update(part.y.data)
        return digest.hexdigest()


PARTS: Final = ("train", "calibration", "validation")


def load_data(name: str, root: Path | None) -> DataSet:
    """Load a data set.

    Args:
        name: `digits`, `fashion_mnist`, `eurosat` or `fsdd`.
        root: The data root, see the README; `digits` needs none.

    Raises:
        ConfigError: There is no such set.
        DataError: There is no data root, a file is missing, or a file is not what it should be.
    """
    from experiments.precision import readers

    known: dict[str, Callable[[Path], DataSet]] = {
        "fashion_mnist": readers.fashion_mnist,
        "eurosat": readers.eurosat,
        "fsdd": readers.fsdd,
    }
    if name == "digits":
        return readers.digits()
    if name not in known:
        raise unknown_name("data set", name, [*known, "digits"])
    if root is None:
        raise DataError(
            f"data set {name!r} needs the data root: set RHEOSTAT_DATA or data.root=...; "
            "network=digits_cnn needs no data"
        )
    return known[name](root)


def ordered(part: Part) -> Part:
    """Order samples by the SHA-256 of their content."""
    order = np.argsort([_digest(sample) for sample in part.x], kind="stable")
    return Part(part.x[order], part.y[order])


def split_by_hash(part: Part, fractions: Sequence[float]) -> list[Part]:
    """Split every class by the hash order of its samples.

    Args:
        part: Everything.
        fractions: Of all parts but the last, which gets the rest.

    Returns:
        The parts, classes mixed, each in hash order.
    """
    part = ordered(part)
    chosen: list[list[NDArray[np.int64]]] = [[] for _ in range(len(fractions) + 1)]
    for label in np.unique(part.y):
        own = np.flatnonzero(part.y == label)
        cuts = np.round(np.cumsum(fractions) * len(own)).astype(int)
        for k, piece in enumerate(np.split(own, cuts)):
            chosen[k].append(piece)
    places = [np.sort(np.concatenate(pieces)) for pieces in chosen]
    return [Part(part.x[place], part.y[place]) for place in places]


def _digest(sample: Floats) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(sample).data).digest()
