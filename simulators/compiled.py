"""Just-in-time compilation with a cache on disk that can never be stale.

numba keys a cached function by its own source file only; a change in a function that it calls
from another file would go unnoticed. All our compiled functions are therefore cached in a folder
named by a hash of all sources of this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config

_PACKAGE = Path(__file__).resolve().parent


@cache
def cache_folder() -> Path:
    """Return the folder of this version of the sources."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return _PACKAGE.parent / ".numba_cache" / digest.hexdigest()[:16]


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that allocates nothing and may be called from Python.

    Passing many arrays to a function costs more than most of our functions do, and so does
    counting references on every row that they look at (measured: 8 times the run time of the
    event loop). Everything is therefore inlined, and compiled without numba's reference counting,
    which is safe because compiled code here only looks at arrays that its Python caller holds.
    """
    return _compile(function)


def inner(function: Callable[..., Any]) -> Any:
    """Compile a function like `jit` does that only compiled code calls; this compiles faster."""
    return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compile(function: Callable[..., Any], **options: bool) -> Any:
    config: Any = numba_config
    njit: Any = numba.njit
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        decorate = njit(cache=True, error_model="numpy", forceinline=True, _nrt=False, **options)
        return decorate(function)
    finally:
        config.CACHE_DIR = before


def bind(function: Any, *arguments: Any) -> Callable[[], Any]:
    """Return a call of a compiled function with fixed arguments, arrays that change in place.

    At every call numba looks at the types of all arguments again, which for our tuples of arrays
    takes longer than simulating one cluster for a period. Here it is done once.
    """
    typeof: Any = numba.typeof
    entry = function.compile(tuple(typeof(argument) for argument in arguments))
    return partial(entry, *arguments)
