"""One place that tells a user's mistake from a bug, and words it.

A mistake (an unknown key, a value out of range, a folder that is not there) becomes a short
message; a bug keeps its traceback.
"""

from __future__ import annotations

import difflib
import dis
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    ValidationError,
)

REPOSITORY = Path(__file__).resolve().parents[1]
OUR_PACKAGES = ("agents", "benchmarks", "envs", "experiments", "runtime", "simulators")

# What OmegaConf raises when a value in a configuration is wrong, as opposed to code that reads a
# key which no configuration has.
_CONFIG_VALUE_ERRORS = (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    ValidationError,
)
_UNKNOWN_KEY = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'")
_STRAY_EQUALS = "mismatched input '='"
_NOT_IN_DEFAULTS = "No match in the defaults list"


class ConfigError(ValueError):
    """A configuration, a file or a folder that the user has to mend."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Name the closest known word.

    Args:
        given: What came.
        known: What would have been accepted.

    Returns:
        `"; did you mean 'x'?"`, or an empty string where nothing is close.
    """
    matches = difflib.get_close_matches(given, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown_name(what: str, given: str, known: Iterable[str]) -> ConfigError:
    """Make the error for a name that is not in a registry.

    Args:
        what: The kind of thing, such as `"agent"`.
        given: What came.
        known: What would have been accepted.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(set(known))
    hint = did_you_mean(given, names)
    return ConfigError(f"unknown {what} {given!r}{hint or ';'} expected one of {', '.join(names)}")


def unknown_key(key: str, known_keys: Iterable[str]) -> str:
    """Word the message for an override whose dotted key no configuration has."""
    hint = _closest_key(key, set(known_keys))
    return f"unknown key {key!r}{hint or '; --cfg job lists the keys'}"


def unknown_override(error: BaseException) -> str | None:
    """Return the key of an override that Hydra did not find, or None if that is not the error."""
    found = _UNKNOWN_KEY.search(str(error)) if isinstance(error, HydraException) else None
    return found.group(1) if found else None


def explain_composition(error: BaseException, known_keys: Iterable[str]) -> str | None:
    """Word an error that came while Hydra put the configuration together.

    Args:
        error: What Hydra or OmegaConf raised.
        known_keys: Dotted keys and group names that would have been accepted.

    Returns:
        A message for the user, or None where the error is not one of Hydra's.
    """
    if (key := unknown_override(error)) is not None:
        if _NOT_IN_DEFAULTS in str(error):
            return f"this command does not choose {key!r} by itself; +{key}=... adds it"
        known = set(known_keys)
        return str(error).strip() if key in known else unknown_key(key, known)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return str(unknown_name(group or "config", choice, error.options))
    if isinstance(error, HydraException):
        hint = "\na value that holds '=' needs quotes: 'key=\"value\"'"
        return str(error).strip() + (hint if _STRAY_EQUALS in str(error) else "")
    if isinstance(error, _CONFIG_VALUE_ERRORS):
        return _first_lines(error)
    # Hydra's own checks of its flags ("Only one of --run, --multirun, ...").
    return str(error) if isinstance(error, ValueError) else None


def explain_run(error: BaseException) -> str | None:
    """Word an error that came out of a command.

    Args:
        error: What the command raised.

    Returns:
        A message for the user where the error is a mistake of theirs: a `ConfigError`, a wrong
        value in the configuration, or a ValueError or OSError that code of this repository raised
        by a `raise` statement. None for everything else, which is a bug and deserves its traceback.
    """
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, _CONFIG_VALUE_ERRORS):
        return _first_lines(error)
    if isinstance(error, ValueError | OSError) and _raised_by_us(error.__traceback__):
        return str(error)
    return None


def _closest_key(key: str, known: set[str]) -> str:
    """Look for the whole dotted key first, then for its last part anywhere."""
    if hint := did_you_mean(key, known):
        return hint
    last = key.rpartition(".")[2]
    ends = {name.rpartition(".")[2]: name for name in sorted(known, reverse=True)}
    match = difflib.get_close_matches(last, ends, n=1, cutoff=0.8)
    return f"; did you mean {ends[match[0]]!r}?" if match else ""


def _first_lines(error: BaseException) -> str:
    """Drop OmegaConf's last line (the type of the parent node), keep message and full key."""
    lines = [line.strip() for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("object_type"))


def _raised_by_us(traceback: TracebackType | None) -> bool:
    """Tell whether the innermost frame is ours and stands at a `raise` statement.

    An exception from compiled code (a shape mismatch in numpy, say) has our frame innermost too,
    but at a call: that is a bug of ours, not a mistake of the user.
    """
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    path = Path(code.co_filename)
    if not path.is_relative_to(REPOSITORY):
        return False
    if path.relative_to(REPOSITORY).parts[0] not in OUR_PACKAGES:
        return False
    return code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]
