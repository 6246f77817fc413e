"""Reading a node of the configuration into the dataclass that describes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.errors import ConfigError, unknown_name

T = TypeVar("T")


def plain_node(node: Any, where: str) -> dict[str, Any]:
    """Return a node as plain nested values, interpolations resolved.

    Args:
        node: A mapping of the configuration.
        where: Its dotted place, for messages.

    Raises:
        ConfigError: It is no mapping.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{where} is {plain!r}; expected keys with values")
    return {str(key): value for key, value in plain.items()}


def check_keys(
    node: Mapping[str, Any], where: str, known: Collection[str], required: Collection[str] = ()
) -> None:
    """Refuse keys that nothing would read, and say which are missing.

    Args:
        node: The mapping that came.
        where: Its dotted place, for messages.
        known: All keys that are read.
        required: Those of them that must be there.

    Raises:
        ConfigError: Names the key, and the closest one that is known.
    """
    for key in node:
        if key not in known:
            raise unknown_name(f"key of {where}", key, known)
    for key in required:
        if node.get(key, "???") == "???":
            raise ConfigError(f"{where} lacks the key {key!r}; give it a value")


def read_node(kind: type[T], node: Any, where: str) -> T:
    """Build a dataclass from a node, with the types of its fields checked by OmegaConf.

    Args:
        kind: A dataclass of plain values and other such dataclasses.
        node: A mapping with its fields; those with defaults may be left out.
        where: Its dotted place, for messages.

    Returns:
        The instance; tuples may come as lists.

    Raises:
        ConfigError: An unknown or missing key, a value of another type or outside its range.
    """
    plain = plain_node(node, where)
    _check_dataclass_keys(kind, plain, where)
    schema = cast("DictConfig", OmegaConf.structured(kind))
    _make_writable(schema)
    try:
        return cast("T", OmegaConf.to_object(OmegaConf.merge(schema, plain)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        place = f"{where}.{key}" if key else where
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_dataclass_keys(kind: type[Any], node: Mapping[str, Any], where: str) -> None:
    own = fields(kind)
    required = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
    check_keys(node, where, [f.name for f in own], required)
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint) and isinstance(node.get(name), Mapping):
            _check_dataclass_keys(cast("type[Any]", hint), node[name], f"{where}.{name}")


def _make_writable(schema: DictConfig) -> None:
    """Undo what frozen dataclasses do: their nodes are read-only, nothing could be merged in."""
    OmegaConf.set_readonly(schema, False)
    for key in schema:
        if not OmegaConf.is_missing(schema, key) and OmegaConf.is_dict(schema[key]):
            _make_writable(schema[key])
