"""Policy bundles: an exported agent as data only, loaded without pickle and without torch.

A bundle is a folder with two files:

- `policy.json`: format version, environment, observation scale and layout, actions, guard limits,
  safe plan, decision period, kind of policy, provenance and checksums;
- `weights.safetensors`: the layers of the network (none for a constant plan).

What a bundle decides is a pure function of its files and of the snapshots it has seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from runtime.cluster.actions import ActionCodec, action_codec
from runtime.cluster.observation import ClusterCodec, ObservationScale
from runtime.guards import GuardLimits
from runtime.plan import PLAN_COLUMNS, Plan
from runtime.snapshot import Snapshot

FORMAT_VERSION = 1
POLICY, WEIGHTS = "policy.json", "weights.safetensors"
ENV_ID = "rheostat/StreamCluster-v0"


class BundleError(ValueError):
    """A folder that is no usable bundle; the message says why."""


@dataclass(frozen=True, eq=False)
class Network:
    """A perceptron: tanh layers, then one linear layer of action preferences.

    Attributes:
        layers: Pairs of weight float32 [out, in] and bias float32 [out].
    """

    layers: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]

    def __call__(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return preferences float32 [..., sum(nvec)] for observations float32 [..., size]."""
        x = observation
        for weight, bias in self.layers[:-1]:
            x = np.tanh(x @ weight.T + bias)
        weight, bias = self.layers[-1]
        return x @ weight.T + bias


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
        if folder.exists():
            raise FileExistsError(f"{folder} exists already; choose another folder or remove it")
        tensors: dict[str, NDArray[np.float32]] = {}
        if isinstance(self.policy, Network):
            for i, (weight, bias) in enumerate(self.policy.layers):
                tensors[f"{i}.weight"] = np.ascontiguousarray(weight)
                tensors[f"{i}.bias"] = np.ascontiguousarray(bias)
        weights = save_tensors(tensors)
        content = self._description() | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
        content["sha256"] = _content_sha256(content)
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / POLICY).write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, folder)

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
        content, weights = _read(folder)
        try:
            bundle = cls(
                name=str(content["name"]),
                policy=_policy(content, weights),
                scale=ObservationScale.from_mapping(content["observation"]["scale"]),
                actions=action_codec(content["actions"]),
                guards=GuardLimits.from_mapping(content["guards"]),
                safe=Plan.from_mapping(content["safe_plan"]),
                period_s=float(content["period_s"]),
                provenance=dict(content["provenance"]),
            )
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise BundleError(f"{folder} is not a usable bundle: {error}") from error
        if bundle._description()["observation"]["layout"] != content["observation"]["layout"]:
            raise BundleError(
                f"{folder} was made for another observation layout; export the agent again"
            )
        _check_shapes(bundle, folder)
        return bundle


def _content_sha256(content: dict[str, Any]) -> str:
    """Return the checksum of a description, its own checksum left out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Read both files; check version and checksums before anything is interpreted."""
    for name in (POLICY, WEIGHTS):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is not a bundle: {name} is missing")
    try:
        content = json.loads((folder / POLICY).read_text())
        version = content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder / POLICY} is not a policy description ({error})") from error
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{folder} has format version {version!r}; this code reads {FORMAT_VERSION}"
        )
    if content.get("env") != ENV_ID:
        raise BundleError(f"{folder} is for {content.get('env')!r}; expected {ENV_ID!r}")
    weights = (folder / WEIGHTS).read_bytes()
    for what, expected, actual in (
        (POLICY, content.get("sha256"), _content_sha256(content)),
        (WEIGHTS, content.get("weights_sha256"), hashlib.sha256(weights).hexdigest()),
    ):
        if expected != actual:
            raise BundleError(
                f"{folder / what} was changed after its export: its SHA-256 is {actual}, the "
                f"bundle says {expected}; copy or export it again"
            )
    return content, weights


def _policy(content: dict[str, Any], weights: bytes) -> Network | Plan:
    if content["kind"] == "constant":
        return Plan.from_mapping(content["plan"])
    if content["kind"] != "network":
        raise ValueError(f"unknown kind {content['kind']!r}; expected 'network' or 'constant'")
    tensors = load_tensors(weights)
    n = len(tensors) // 2
    layers = tuple((tensors[f"{i}.weight"], tensors[f"{i}.bias"]) for i in range(n))
    return Network(layers)


def _check_shapes(bundle: Bundle, folder: Path) -> None:
    """Refuse a network that does not fit its observation and actions, or is not finite."""
    if isinstance(bundle.policy, Plan):
        return
    width = len(ClusterCodec(bundle.scale).layout)
    for i, (weight, bias) in enumerate(bundle.policy.layers):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != (weight.shape[0],):
            raise BundleError(
                f"{folder}: layer {i} has weight {weight.shape} and bias {bias.shape}; expected "
                f"[n, {width}] and [n]"
            )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise BundleError(f"{folder}: layer {i} holds a number that is not finite")
        width = weight.shape[0]
    if width != sum(bundle.actions.nvec):
        raise BundleError(
            f"{folder}: the network has {width} outputs; its actions need "
            f"{sum(bundle.actions.nvec)}"
        )


class BundlePolicy:
    """A loaded bundle that decides for one cluster."""

    def __init__(self, bundle: Bundle) -> None:
        """Prepare for the first snapshot."""
        self.bundle = bundle
        self._codec = ClusterCodec(bundle.scale)
        nvec = bundle.actions.nvec
        dimension = np.repeat(np.arange(len(nvec)), nvec)
        choice = np.concatenate([np.arange(n) for n in nvec])
        self._padded = np.full((len(nvec), max(nvec)), -np.inf, dtype=np.float32)
        self._place = dimension * max(nvec) + choice

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
        self._padded.flat[self._place] = preferences
        choice: NDArray[np.int64] = self._padded.argmax(axis=1)
        return choice
