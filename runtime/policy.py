"""Policy bundles: an exported agent as data only, loaded without pickle and without torch.

A bundle is a folder with two files (see `runtime.bundle_files`):

- `policy.json`: format version, environment, observation scale and layout, actions, guard limits,
  safe plan, decision period, kind of policy, provenance and checksums;
- `weights.safetensors`: the layers of the network (none for a constant plan).

What a bundle decides is a pure function of its files and of the snapshots it has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.bundle_files import (
    FORMAT_VERSION,
    POLICY,
    WEIGHTS,
    BundleError,
    Tensors,
    read_bundle,
    write_bundle,
)
from runtime.cluster.actions import ActionCodec, action_codec
from runtime.cluster.observation import ClusterCodec, ObservationScale
from runtime.guards import GuardLimits
from runtime.networks import Network, Preferred, network_from
from runtime.plan import PLAN_COLUMNS, Plan
from runtime.snapshot import Snapshot

__all__ = ["POLICY", "WEIGHTS", "Bundle", "BundleError", "BundlePolicy", "Network"]

ENV_ID = "rheostat/StreamCluster-v0"


@dataclass(frozen=True, eq=False)
class Bundle:
    """Everything that a deployed policy consists of.

    Attributes:
        name: What the agent is called in tables.
        policy: A network, or the one plan of a constant agent.
        scale: What observations are normalised by.
        actions: How preferences become a plan.
        guards: Limits that the policy was trained under.
        safe: The plan to fall back to.
        period_s: Time between decisions, seconds.
        provenance: Where it comes from (plain JSON values).
    """

    name: str
    policy: Network | Plan
    scale: ObservationScale
    actions: ActionCodec
    guards: GuardLimits
    safe: Plan
    period_s: float
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the bundle (into a temporary folder that is then renamed).

        Raises:
            FileExistsError: The folder exists already.
        """
        tensors = self.policy.tensors() if isinstance(self.policy, Network) else {}
        write_bundle(folder, self._description(), tensors)

    def _description(self) -> dict[str, Any]:
        constant = self.policy if isinstance(self.policy, Plan) else None
        layout = [[e.name, e.unit, e.high, e.log_step] for e in ClusterCodec(self.scale).layout]
        return {
            "format_version": FORMAT_VERSION,
            "env": ENV_ID,
            "name": self.name,
            "kind": "network" if constant is None else "constant",
            "plan": None if constant is None else constant.to_mapping(),
            "period_s": self.period_s,
            "observation": {"scale": self.scale.to_mapping(), "layout": layout},
            "actions": self.actions.to_mapping(),
            "guards": self.guards.to_mapping(),
            "safe_plan": self.safe.to_mapping(),
            "provenance": self.provenance,
        }

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and check a bundle.

        Raises:
            BundleError: Not a bundle, another version, a wrong checksum or shape, a number that is
                not finite, or an observation layout that this code no longer has.
        """
        content, tensors = read_bundle(folder, ENV_ID)
        try:
            bundle = cls(
                name=str(content["name"]),
                policy=_policy(content, tensors),
                scale=ObservationScale.from_mapping(content["observation"]["scale"]),
                actions=action_codec(content["actions"]),
                guards=GuardLimits.from_mapping(content["guards"]),
                safe=Plan.from_mapping(content["safe_plan"]),
                period_s=float(content["period_s"]),
                provenance=dict(content["provenance"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder} is not a usable bundle: {error}") from error
        if bundle._description()["observation"]["layout"] != content["observation"]["layout"]:
            raise BundleError(
                f"{folder} was made for another observation layout; export the agent again"
            )
        if isinstance(bundle.policy, Network):
            try:
                bundle.policy.check(
                    len(ClusterCodec(bundle.scale).layout), sum(bundle.actions.nvec)
                )
            except ValueError as error:
                raise BundleError(f"{folder}: {error}") from error
        return bundle


def _policy(content: dict[str, Any], tensors: Tensors) -> Network | Plan:
    if content["kind"] == "constant":
        return Plan.from_mapping(content["plan"])
    if content["kind"] != "network":
        raise ValueError(f"unknown kind {content['kind']!r}; expected 'network' or 'constant'")
    return network_from(tensors)


class BundlePolicy:
    """A loaded bundle that decides for one cluster."""

    def __init__(self, bundle: Bundle) -> None:
        """Prepare for the first snapshot."""
        self.bundle = bundle
        self._codec = ClusterCodec(bundle.scale)
        self._preferred = Preferred(bundle.actions.nvec)

    @property
    def name(self) -> str:
        """What the agent is called in tables."""
        return self.bundle.name

    def reset(self) -> None:
        """Forget the past."""
        self._codec.reset()

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return the plan of the most preferred action."""
        policy = self.bundle.policy
        if isinstance(policy, Plan):
            return policy
        preferences = policy(self._codec.encode(snapshot.signals[None])[0])
        choice = self.choose(preferences)
        current = snapshot.signals[None, -len(PLAN_COLUMNS) :]
        row = self.bundle.actions.decode(choice[None], current)[0]
        return Plan.from_row(row)

    def choose(self, preferences: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the most preferred choice per dimension, int64 [len(nvec)]."""
        return self._preferred.one(preferences)
