"""Policy bundles of staged precision: an exported agent as data only, decided without torch.

The files are those of `runtime.bundle_files`. `policy.json` holds the names of stages and levels,
observation scale and layout, actions, guard limits, safe plan, serving rules and provenance;
`weights.safetensors` the network (none for a constant plan) and what guards know about the bank.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle_files import (
    FORMAT_VERSION,
    BundleError,
    Tensors,
    read_bundle,
    write_bundle,
)
from runtime.networks import Network, Preferred, RecurrentNetwork, network_from, recurrent_from
from runtime.precision.actions import ActionCodec, TableActions, action_codec
from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.guards import PrecisionGuards
from runtime.precision.observation import PrecisionCodec, PrecisionScale
from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Serving
from runtime.precision.snapshot import PrecisionSnapshot

__all__ = ["ENV_ID", "BundleError", "PrecisionBundle", "PrecisionBundlePolicy"]

ENV_ID = "rheostat/StagedPrecision-v0"


@dataclass(frozen=True, eq=False)
class PrecisionBundle:
    """Everything that a deployed policy of staged precision consists of.

    Attributes:
        name: What the agent is called in tables.
        policy: A network, or the one plan of a constant agent.
        stages: Names of the stages, in order.
        levels: Names of the levels, in the order in which plans count them.
        scale: What observations are normalised by.
        actions: How preferences become a plan.
        guards: Limits that the policy was trained under.
        tables: What guards know about the bank.
        safe: The plan to fall back to.
        serving: Deadline, batching and shadow checks that it was trained under.
        masked: Whether actions that guards would not let pass are never preferred.
        provenance: Where it comes from (plain JSON values).
    """

    name: str
    policy: Network | RecurrentNetwork | PrecisionPlan
    stages: tuple[str, ...]
    levels: tuple[str, ...]
    scale: PrecisionScale
    actions: ActionCodec
    guards: PrecisionLimits
    tables: BankTables
    safe: PrecisionPlan
    serving: Serving
    masked: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other.

        Raises:
            ValueError: Names the part.
        """
        scale = self.scale
        named, counted = (len(self.stages), len(self.levels)), (scale.n_stages, scale.n_levels)
        tables = (self.tables.n_stages, self.tables.n_levels)
        if not named == counted == tables:
            raise ValueError(
                f"(stages, levels) are {named} by name, {counted} in the observation scale and "
                f"{tables} in the guards' tables; expected the same"
            )
        self.guarded()  # refuses limits or a safe plan that do not fit the bank
        first = np.zeros((1, len(self.actions.nvec)), dtype=np.int64)
        row = self.actions.decode(first, self.safe.to_row()[None])[0]
        if len(row) != 2 * scale.n_stages + 1:
            raise ValueError(
                f"actions make plans of {len(row) // 2} stages; expected {scale.n_stages}"
            )
        if not isinstance(self.policy, PrecisionPlan):
            self.policy.check(PrecisionCodec(scale).size, sum(self.actions.nvec))
        elif len(self.policy.levels) != scale.n_stages:
            raise ValueError(
                f"the plan has {len(self.policy.levels)} stages; expected {scale.n_stages}"
            )

    @property
    def decides(self) -> bool:
        """Whether it is more than a plan that never changes."""
        return not isinstance(self.policy, PrecisionPlan)

    def guarded(self, n: int = 1) -> PrecisionGuards:
        """Return the guards of n servers that the policy was trained under."""
        return PrecisionGuards(self.guards, self.tables, self.safe, self.scale.signals, n)

    def save(self, folder: Path) -> None:
        """Write the bundle (into a temporary folder that is then renamed).

        Raises:
            FileExistsError: The folder exists already.
        """
        tables = {"accuracy": self.tables.accuracy, "latency_s": self.tables.latency_s}
        tensors: Tensors = {f"tables.{name}": table for name, table in tables.items()}
        if not isinstance(self.policy, PrecisionPlan):
            tensors |= self.policy.tensors()
        write_bundle(folder, self._description(), tensors)

    def _description(self) -> dict[str, Any]:
        policy = self.policy
        constant = policy if isinstance(policy, PrecisionPlan) else None
        return {
            "format_version": FORMAT_VERSION,
            "env": ENV_ID,
            "name": self.name,
            "kind": "constant" if constant else "network",
            "plan": constant.to_mapping() if constant else None,
            "network": None if isinstance(policy, PrecisionPlan) else _network_mapping(policy),
            "masked": self.masked,
            "stages": list(self.stages),
            "levels": list(self.levels),
            "buckets": list(self.tables.buckets),
            "observation": {"scale": self.scale.to_mapping(), "layout": _layout(self.scale)},
            "actions": self.actions.to_mapping(),
            "guards": self.guards.to_mapping(),
            "safe_plan": self.safe.to_mapping(),
            "serving": asdict(self.serving),
            "provenance": self.provenance,
        }

    @classmethod
    def load(cls, folder: Path) -> PrecisionBundle:
        """Read and check a bundle.

        Raises:
            BundleError: Not a bundle, another version, a wrong checksum or shape, a number that is
                not finite, parts that do not fit each other, or an observation layout that this
                code no longer has.
        """
        content, tensors = read_bundle(folder, ENV_ID)
        try:
            bundle = cls._from(content, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder} is not a usable bundle: {error}") from error
        if _layout(bundle.scale) != content["observation"]["layout"]:
            raise BundleError(
                f"{folder} was made for another observation layout; export the agent again"
            )
        return bundle

    @classmethod
    def _from(cls, content: dict[str, Any], tensors: Tensors) -> PrecisionBundle:
        scale = PrecisionScale.from_mapping(content["observation"]["scale"])
        return cls(
            name=str(content["name"]),
            policy=_policy(content, tensors),
            stages=tuple(content["stages"]),
            levels=tuple(content["levels"]),
            scale=scale,
            actions=action_codec(content["actions"]),
            guards=PrecisionLimits.from_mapping(content["guards"]),
            tables=BankTables(
                scale.n_stages,
                scale.n_levels,
                tuple(content["buckets"]),
                tensors["tables.accuracy"],
                tensors["tables.latency_s"],
            ),
            safe=PrecisionPlan.from_mapping(content["safe_plan"]),
            serving=Serving(**content["serving"]),
            masked=bool(content["masked"]),
            provenance=dict(content["provenance"]),
        )


def _layout(scale: PrecisionScale) -> list[list[Any]]:
    return [[e.name, e.unit, e.low, e.high, e.log_step] for e in PrecisionCodec(scale).layout]


def _network_mapping(network: Network | RecurrentNetwork) -> dict[str, Any]:
    recurrent = isinstance(network, RecurrentNetwork)
    head = network.head if isinstance(network, RecurrentNetwork) else network
    return {"recurrent": recurrent, "activation": head.activation}


def _policy(
    content: dict[str, Any], tensors: Tensors
) -> Network | RecurrentNetwork | PrecisionPlan:
    if content["kind"] == "constant":
        return PrecisionPlan.from_mapping(content["plan"])
    if content["kind"] != "network":
        raise ValueError(f"unknown kind {content['kind']!r}; expected 'network' or 'constant'")
    how = content["network"]
    build = recurrent_from if how["recurrent"] else network_from
    return build(tensors, how["activation"])


class PrecisionBundlePolicy:
    """A loaded bundle that decides for one server."""

    def __init__(self, bundle: PrecisionBundle) -> None:
        """Prepare for the first snapshot."""
        self.bundle = bundle
        self._codec = PrecisionCodec(bundle.scale)
        self._preferred = Preferred(bundle.actions.nvec)
        self._guards = bundle.guarded() if bundle.masked else None
        actions = bundle.actions
        self._plans: list[PrecisionPlan] | None = None
        if isinstance(actions, TableActions):
            self._plans = list(actions.plans.values())
        # Compiled, or read from numba's cache, before the first decision is waited for.
        self._codec.encode(np.zeros((1, bundle.scale.signals.size)))
        self.reset()

    @property
    def name(self) -> str:
        """What the agent is called in tables."""
        return self.bundle.name

    @property
    def decides(self) -> bool:
        """Whether it looks at what happens, and so takes time."""
        return self.bundle.decides

    def reset(self) -> None:
        """Forget the past."""
        self._codec.reset()
        policy = self.bundle.policy
        self._state = None if isinstance(policy, PrecisionPlan) else policy.start(1)

    def decide(self, snapshot: PrecisionSnapshot) -> PrecisionPlan:
        """Return the plan of the most preferred action.

        A recurrent policy takes in every snapshot once: ask once per decision.
        """
        policy = self.bundle.policy
        if isinstance(policy, PrecisionPlan):
            return policy
        choice = self._preferred.one(self.preferences(snapshot))
        if self._plans is not None:
            return self._plans[int(choice[0])]
        row = self.bundle.actions.decode(choice[None], snapshot.plan.to_row()[None])[0]
        return PrecisionPlan.from_row(row)

    def preferences(self, snapshot: PrecisionSnapshot) -> NDArray[np.float32]:
        """Take in a snapshot and return how much each choice is preferred, float32 [sum(nvec)].

        Raises:
            ValueError: The bundle is a constant plan.
        """
        policy = self.bundle.policy
        if isinstance(policy, PrecisionPlan):
            raise ValueError(f"bundle {self.name!r} is a constant plan and prefers nothing")
        signals = snapshot.signals[None]
        preferred, self._state = policy.advance(self._codec.encode(signals), self._state)
        if self._guards is not None:
            current = snapshot.plan.to_row()[None]
            masks = self._guards.masks(self.bundle.actions, current, signals)
            preferred = np.where(masks, preferred, np.float32(-np.inf))
        result: NDArray[np.float32] = preferred[0]
        return result
