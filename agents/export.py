"""From trained agents to policy bundles."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from agents.api import Episodes
from agents.learned import LearnedBatch
from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan
from runtime.policy import Bundle, BundlePolicy, Network

PARITY_OBSERVATIONS = 256


class ExportError(ValueError):
    """An agent that cannot be exported, or whose export decides differently."""


def network_of(model: PPO) -> Network:
    """Return the action network of a PPO agent.

    Raises:
        ExportError: The policy has another shape than hidden layers and one linear layer.
    """
    return perceptron(model.policy.mlp_extractor.policy_net, model.policy.action_net)


def perceptron(hidden: Iterable[torch.nn.Module], last: torch.nn.Linear) -> Network:
    """Return hidden layers and a last linear layer as a numpy network.

    Raises:
        ExportError: A hidden layer that is not linear, or activations other than all tanh or all
            ReLU.
    """
    layers = list(hidden)
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    rest = [layer for layer in layers if not isinstance(layer, torch.nn.Linear)]
    kinds = {type(layer) for layer in rest} or {torch.nn.Tanh}
    kind = kinds.pop()
    if kinds or kind not in _ACTIVATIONS:
        raise ExportError(
            f"only tanh layers or ReLU layers can be exported; this policy has {rest}"
        )
    return Network(tuple(map(arrays_of, [*linear, last])), _ACTIVATIONS[kind])


_ACTIVATIONS: dict[type, str] = {torch.nn.Tanh: "tanh", torch.nn.ReLU: "relu"}


def arrays_of(layer: torch.nn.Linear) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return copies of weight float32 [out, in] and bias float32 [out]."""
    return layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()


def bundle_of(
    name: str, policy: Network | Plan, config: StreamClusterConfig, provenance: dict[str, Any]
) -> Bundle:
    """Return the bundle of a policy that was made for a world."""
    return Bundle(
        name=name,
        policy=policy,
        scale=config.scale(),
        actions=config.actions,
        guards=config.guards,
        safe=config.initial_plan,
        period_s=config.period_s,
        provenance=provenance,
    )


def export_ppo(
    model: PPO, config: StreamClusterConfig, folder: Path, provenance: dict[str, Any]
) -> Bundle:
    """Write a PPO agent as a bundle after checking that it decides the same.

    The check covers `PARITY_OBSERVATIONS` observations of an episode in which the agent decides
    for as many clusters as that takes; the decisions must be equal.

    Args:
        model: The trained agent.
        config: The world it was trained in.
        folder: Where the bundle goes; must not exist.
        provenance: Plain JSON values to keep with it.

    Raises:
        ExportError: The exported policy decides differently somewhere.
        FileExistsError: The folder exists.
    """
    bundle = bundle_of("ppo", network_of(model), config, provenance)
    observations = parity_observations(model, config)
    check_parity(model, bundle, observations)
    bundle.save(folder)
    return bundle


def parity_observations(model: PPO, config: StreamClusterConfig) -> NDArray[np.float32]:
    """Return observations that the agent meets, float32 [PARITY_OBSERVATIONS, size]."""
    n = 16
    keys = np.arange(n, dtype=np.uint64)
    starts = np.linspace(config.starts[0], config.starts[1], n).astype(np.int64)
    clusters = Clusters(config, n)
    agent = LearnedBatch(model)
    agent.begin(clusters)
    seen = [clusters.begin(*Episodes(keys, starts))]
    while len(seen) * n < PARITY_OBSERVATIONS:
        observation, _, _ = clusters.step_rows(agent.propose(seen[-1], clusters.engine.signals))
        seen.append(observation)
    return np.concatenate(seen)[:PARITY_OBSERVATIONS]


def check_parity(model: PPO, bundle: Bundle, observations: NDArray[np.float32]) -> None:
    """Compare the decisions of an agent and of its bundle.

    Args:
        model: The trained agent.
        bundle: Its export.
        observations: float32 [n, size].

    Raises:
        ExportError: A decision differs.
    """
    expected = model.predict(observations, deterministic=True)[0].reshape(len(observations), -1)
    assert isinstance(bundle.policy, Network)
    policy = BundlePolicy(bundle)
    actual = np.stack([policy.choose(row) for row in bundle.policy(observations)])
    refuse_differences(expected, actual)


def refuse_differences(expected: NDArray[np.int64], actual: NDArray[np.int64]) -> None:
    """Refuse an export that decides differently.

    Args:
        expected: int64 [n, dims], decisions of the agent.
        actual: int64 [n, dims], those of its export.

    Raises:
        ExportError: A decision differs.
    """
    wrong = np.nonzero((expected != actual).any(axis=1))[0]
    if len(wrong):
        k = int(wrong[0])
        raise ExportError(
            f"the exported policy decides {actual[k].tolist()} where the agent decides "
            f"{expected[k].tolist()} ({len(wrong)} of {len(expected)} observations differ); "
            "nothing was written"
        )
