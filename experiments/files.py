"""Writing files so that a reader sees the old or the new content and nothing in between."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to it when the block ends without an error.

    Args:
        path: Where the file shall be; missing folders are made.

    Yields:
        A path in the same folder with the same ending, so writers that go by the ending work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Distinct for each writer: two of them never write into the same temporary file.
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".{writer}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, atomically and durably.

    Args:
        path: Where to write.
        text: The whole content.
    """
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: indented, keys in the order given.

    Args:
        path: Where to write.
        value: Built from dicts, lists, str, int, float, bool, None, and numpy scalars and arrays,
            enums (by name) and paths.

    Raises:
        ValueError: If a number is not finite; JSON has no NaN. Write None instead.
        TypeError: If the value holds anything else.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    write_text(path, text + "\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values as JSON, one a line, atomically; see `write_json` for what they may hold."""
    dump = partial(json.dumps, ensure_ascii=False, allow_nan=False, default=_plain)
    write_text(path, "".join(f"{dump(value)}\n" for value in values))


def write_yaml(path: Path, mapping: Mapping[str, Any]) -> None:
    """Write a configuration as YAML that Hydra and OmegaConf read back equal.

    Args:
        path: Where to write.
        mapping: Nested plain values.
    """
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(dict(mapping))))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table atomically, without its index; floats read back bit-identical.

    Args:
        path: Where to write; `.csv`, or `.csv.gz` for a compressed file whose bytes depend on the
            table alone.
        table: The rows.
    """
    content = table.to_csv(index=False, lineterminator="\n").encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"cannot write {value!r} ({type(value).__name__}) as JSON")
