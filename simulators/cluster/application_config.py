"""Applications and their declared costs from a configuration (conf/application/*.yaml).

    name: example
    classification: in-edge            # or any-edge; in-edge if left out
    machine: {slots: 8, cores: 2, active_share: 0.2}
    jobs:
      parse:
        stages:
          main: {records_per_task: 64, wait_s: 0.02, fixed_s: 0.002, per_record_s: 2.0e-5, cv: 0.3}
      alert:
        after: [parse]
        stateful: true
        stages:
          main: {max_tasks: 1, fixed_s: 0.001, per_record_s: 1.0e-5}

Jobs and stages are mappings in the order of execution, so that one value can be overridden by its
path (`application.jobs.parse.stages.main.wait_s=0.1`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application, Classification, Job, Stage
from simulators.cluster.profile import Profile, StageCost

RESIDUAL_QUANTILES = 64
"""Entries of a declared residual table."""


class ApplicationError(ValueError):
    """A configuration describes no application; the message names the place."""


@dataclass(frozen=True)
class Machine:
    """What the declared costs assume to stand behind the slots.

    Attributes:
        slots: Worker slots.
        cores: Cores shared by the busy slots.
        active_share: Fraction of the time that another busy slot needs a core, in [0, 1]; the rest
            it waits, for instance for a store.
    """

    slots: int
    cores: int
    active_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse machines without slots or cores.

        Raises:
            ValueError: Names the field.
        """
        if self.slots < 1 or self.cores < 1:
            raise ValueError(f"slots is {self.slots}, cores is {self.cores}; expected at least 1")
        if not 0.0 <= self.active_share <= 1.0:
            raise ValueError(f"active_share is {self.active_share}; expected a share in [0, 1]")

    def slowdown(self) -> NDArray[np.float64]:
        """Return the factor on computing time by busy slots.

        Processor sharing: with k busy slots a task meets B others that want a core at the same
        time, B binomial with k - 1 trials and probability `active_share`; its computing takes
        max(1, (1 + B) / cores) times as long in the mean. With active_share = 1 that is
        max(1, k / cores).

        Returns:
            float64 [slots + 1]; entry 0 is 1.
        """
        table = np.ones(self.slots + 1)
        for k in range(1, self.slots + 1):
            table[k] = sum(
                math.comb(k - 1, b)
                * self.active_share**b
                * (1.0 - self.active_share) ** (k - 1 - b)
                * max(1.0, (1 + b) / self.cores)
                for b in range(k)
            )
        return table


def lognormal_residual(cv: float, size: int = RESIDUAL_QUANTILES) -> NDArray[np.float64]:
    """Return a table of equally likely factors that approximates a lognormal law.

    The factors are its quantiles at (i + 0.5) / size, divided by their mean; the law's width is
    chosen such that the *table* has the coefficient of variation asked for.

    Args:
        cv: Coefficient of variation, from 0 up to half of the largest that `size` values can have.
        size: Number of factors.

    Returns:
        float64 [size], ascending, mean 1 ([1.0] for cv = 0).

    Raises:
        ValueError: `cv` out of range.
    """
    largest = 0.5 * math.sqrt(size - 1)
    if not (math.isfinite(cv) and 0.0 <= cv <= largest):
        raise ValueError(f"cv is {cv}; expected 0 to {largest:.3g}")
    if cv == 0.0:
        return np.ones(1)
    normal = NormalDist()
    z = np.array([normal.inv_cdf((i + 0.5) / size) for i in range(size)])
    low, high = 0.0, 20.0  # at sigma = 20 one factor holds nearly all the mass
    for _ in range(80):
        sigma = 0.5 * (low + high)
        table = np.exp(sigma * z)
        table /= table.mean()
        low, high = (sigma, high) if table.std() < cv else (low, sigma)
    return table


def parse_application(content: Mapping[str, Any]) -> tuple[Application, Profile]:
    """Build an application and its declared profile from a configuration.

    Args:
        content: Plain values as in the example at the top of this module.

    Raises:
        ApplicationError: Unknown or missing keys, wrong types, impossible values, unknown names or
            cycles; the message names the place and, for a misspelt name, the closest match.
    """
    _check_keys(content, "application", ("name", "machine", "jobs"), ("classification",))
    name = _value(content, "name", str, "application")
    jobs = _section(content["jobs"], f"jobs of {name!r}")
    if not jobs:
        raise ApplicationError(f"application {name!r} has no jobs; expected at least one")
    machine = _machine(content["machine"])
    parsed = {job: _job(job, value, machine) for job, value in jobs.items()}
    try:
        application = Application(
            name=name,
            jobs=tuple(job for job, _, _ in parsed.values()),
            edges=tuple(
                (_known(before, parsed, f"job {after!r}: after"), after)
                for after, (_, waits, _) in parsed.items()
                for before in waits
            ),
            classification=_classification(content.get("classification", "in-edge")),
        )
    except ApplicationError:
        raise
    except ValueError as error:
        raise ApplicationError(str(error)) from error
    costs = {
        (job, stage): cost for job, (_, _, own) in parsed.items() for stage, cost in own.items()
    }
    return application, Profile(name, costs, machine.slots, machine.cores, origin="declared")


_STAGE_KEYS: dict[str, type] = {
    "records_per_task": int,
    "max_tasks": int,
    "selectivity": float,
    "parents": list,
    "wait_s": float,
    "fixed_s": float,
    "per_record_s": float,
    "cv": float,
    "slowdown": list,
    "failure_probability": float,
}


def _machine(content: Any) -> Machine:
    section = _section(content, "machine")
    _check_keys(section, "machine", ("slots", "cores"), ("active_share",))
    types = {"slots": int, "cores": int, "active_share": float}
    values = {key: _value(section, key, types[key], "machine") for key in section}
    try:
        return Machine(**values)
    except ValueError as error:
        raise ApplicationError(f"machine: {error}") from error


def _job(name: str, content: Any, machine: Machine) -> tuple[Job, list[str], dict[str, StageCost]]:
    """Return a job, the names of the jobs it waits for, and its stages' costs."""
    where = f"job {name!r}"
    section = _section(content, where)
    _check_keys(section, where, ("stages",), ("after", "stateful"))
    after = _names(section.get("after", []), f"{where}: after")
    stateful = _value(section, "stateful", bool, where) if "stateful" in section else False
    stages: list[Stage] = []
    costs: dict[str, StageCost] = {}
    for stage, value in _section(section["stages"], f"stages of {where}").items():
        parsed, costs[stage] = _stage(stage, value, f"{where}, stage {stage!r}", machine)
        for parent in parsed.parents or ():
            _known(parent, [s.name for s in stages], f"{where}, stage {stage!r}: parents")
        stages.append(parsed)
    try:
        return Job(name, tuple(stages), stateful), after, costs
    except ValueError as error:
        raise ApplicationError(str(error)) from error


def _stage(name: str, content: Any, where: str, machine: Machine) -> tuple[Stage, StageCost]:
    section = _section(content, where)
    _check_keys(section, where, (), tuple(_STAGE_KEYS))
    values = {key: _value(section, key, _STAGE_KEYS[key], where) for key in section}
    structure = {f.name: values[f.name] for f in fields(Stage) if f.name in values}
    if "parents" in structure:
        structure["parents"] = tuple(_names(structure["parents"], f"{where}: parents"))
    slowdown = machine.slowdown()
    if "slowdown" in values:
        slowdown = _numbers(values["slowdown"], f"{where}: slowdown")
    try:
        cost = StageCost(
            wait_s=values.get("wait_s", 0.0),
            fixed_s=values.get("fixed_s", 0.0),
            per_record_s=values.get("per_record_s", 0.0),
            residual=lognormal_residual(values.get("cv", 0.0)),
            slowdown=slowdown,
            failure_probability=values.get("failure_probability", 0.0),
        )
        return Stage(name, **structure), cost
    except ValueError as error:
        raise ApplicationError(f"{where}: {error}") from error


def _classification(value: Any) -> Classification:
    names = [member.value for member in Classification]
    return Classification(_known(value, names, "classification"))


def _section(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ApplicationError(f"{where} is {content!r}; expected keys with values")
    for key in content:
        if not isinstance(key, str):
            raise ApplicationError(f"{where} has the key {key!r}; expected a name")
    return content


def _check_keys(
    section: Mapping[str, Any], where: str, required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    for key in section:
        _known(key, required + optional, where, "key")
    for key in required:
        if key not in section:
            raise ApplicationError(f"{where} lacks the key {key!r}")


def _known(value: Any, names: Collection[str], where: str, what: str = "name") -> str:
    """Return a name that is one of `names`; refuse others with the closest match."""
    if isinstance(value, str) and value in names:
        return value
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ApplicationError(
        f"{where}: unknown {what} {value!r}; {hint}expected one of {', '.join(names)}"
    )


def _value(section: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """Return a value of the type asked for; whole numbers pass for floats, never bools."""
    value = section[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        expected = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ApplicationError(
            f"{where}: {key} is {value!r}; expected {expected.get(kind, 'a list')}"
        )
    return value


def _names(content: Any, where: str) -> list[str]:
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ApplicationError(f"{where} is {content!r}; expected a list of names")
    return content


def _numbers(content: list[Any], where: str) -> NDArray[np.float64]:
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in content):
        raise ApplicationError(f"{where} is {content!r}; expected a list of numbers")
    return np.array(content, dtype=np.float64)
