"""From trained agents of staged precision to policy bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.export import ExportError, perceptron, refuse_differences
from agents.learned import LearnedBatch
from agents.precision.api import Episodes
from envs.precision.config import StagedPrecisionConfig
from envs.precision.servers import Servers
from runtime.networks import Network, RecurrentNetwork
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle, PrecisionBundlePolicy

PARITY_SERVERS, PARITY_STEPS = 8, 1024
"""Decisions that are compared before a bundle is written: their product, fewer if streams end."""

TIE = 1e-5
"""Preferences this close (relative to the largest of them, if above 1) differ by rounding only."""


def network_of(model: BaseAlgorithm) -> Network | RecurrentNetwork:
    """Return what a trained agent decides by, as a numpy network.

    Of an agent that learned quantiles of the return it is their mean, folded into the last layer.

    Raises:
        ExportError: An algorithm or a network that cannot be exported.
    """
    policy = model.policy
    if isinstance(model, (PPO, MaskablePPO, RecurrentPPO)):
        head = perceptron(policy.mlp_extractor.policy_net, policy.action_net)
        return _recurrent(policy.lstm_actor, head) if isinstance(model, RecurrentPPO) else head
    if isinstance(model, QRDQN):
        *hidden, last = policy.quantile_net.quantile_net
        network = perceptron(hidden, last)
        weight, bias = network.layers[-1]
        shape = (policy.n_quantiles, model.action_space.n)  # type: ignore[attr-defined]
        mean = (weight.reshape(*shape, -1).mean(axis=0), bias.reshape(shape).mean(axis=0))
        return Network((*network.layers[:-1], mean), network.activation)
    if isinstance(model, DQN):
        *hidden, last = policy.q_net.q_net
        return perceptron(hidden, last)
    raise ExportError(f"an agent of {type(model).__name__} cannot be exported")


def _recurrent(lstm: torch.nn.LSTM, head: Network) -> RecurrentNetwork:
    if lstm.num_layers != 1:
        raise ExportError(f"the recurrent network has {lstm.num_layers} layers; expected 1")
    parts = {
        name: getattr(lstm, f"{name}_l0").detach().numpy().copy()
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    bias = parts["bias_ih"] + parts["bias_hh"]
    return RecurrentNetwork(parts["weight_ih"], parts["weight_hh"], bias, head)


def bundle_of(
    name: str,
    policy: Network | RecurrentNetwork | PrecisionPlan,
    config: StagedPrecisionConfig,
    provenance: dict[str, Any],
    masked: bool = False,
) -> PrecisionBundle:
    """Return the bundle of a network or of a constant plan that was made for a world.

    Args:
        name: What the agent is called in tables.
        policy: How it decides.
        config: The world it was trained in.
        provenance: Plain JSON values to keep with it.
        masked: Whether it never prefers actions that the guards would not let pass.
    """
    return PrecisionBundle(
        name=name,
        policy=policy,
        stages=tuple(config.profile.stages),
        levels=tuple(config.profile.levels),
        scale=config.scale(),
        actions=config.actions,
        guards=config.guards,
        tables=config.bank_tables(),
        safe=config.safe_plan,
        serving=config.serving,
        masked=masked,
        provenance=provenance,
    )


def export_agent(
    name: str,
    model: BaseAlgorithm,
    config: StagedPrecisionConfig,
    folder: Path,
    provenance: dict[str, Any],
) -> PrecisionBundle:
    """Write a trained agent as a bundle after checking that it decides the same.

    Args:
        name: What the agent is called in tables.
        model: The trained agent.
        config: The world it was trained in.
        folder: Where the bundle goes; must not exist.
        provenance: Plain JSON values to keep with it.

    Raises:
        ExportError: An agent that cannot be exported, or whose export decides differently.
        FileExistsError: The folder exists.
    """
    masked = isinstance(model, MaskablePPO)
    bundle = bundle_of(name, network_of(model), config, provenance, masked)
    check_parity(model, bundle, config)
    bundle.save(folder)
    return bundle


def check_parity(
    model: BaseAlgorithm, bundle: PrecisionBundle, config: StagedPrecisionConfig
) -> None:
    """Compare the decisions of an agent and of its bundle on streams that the agent serves.

    The bundle decides as when deployed, one policy per server, each from the snapshots alone; so
    codec, masks and memory are compared too.

    Args:
        model: The trained agent.
        bundle: Its export.
        config: The world it was trained in.

    Raises:
        ExportError: A decision differs that was no tie.
    """
    n = PARITY_SERVERS
    keys = np.arange(n, dtype=np.uint64)
    starts = np.linspace(config.starts[0], config.starts[1], n).astype(np.int64)
    servers, agent = Servers(config, n), LearnedBatch(model)
    observation = servers.begin(*Episodes(keys, starts))
    agent.begin(servers)
    policies = [PrecisionBundlePolicy(bundle) for _ in range(n)]
    expected, actual = [], []
    for _ in range(PARITY_STEPS):
        if servers.engine.finished.all():
            break
        choice = agent.choose(observation)
        snapshots = (servers.engine.snapshot(k) for k in range(n))
        pairs = zip(policies, snapshots, strict=True)
        preferences = np.stack([policy.preferences(snapshot) for policy, snapshot in pairs])
        expected.append(choice)
        actual.append(_unless_tied(preferences, choice, bundle.actions.nvec))
        observation, _, _ = servers.step(choice)
    refuse_differences(np.concatenate(expected), np.concatenate(actual))


def _unless_tied(
    preferences: NDArray[np.float32], expected: NDArray[np.int64], nvec: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the preferred choices, int64 [N, D]; among equals the expected one."""
    result = expected.copy()
    first = 0
    for d, n in enumerate(nvec):
        own = preferences[:, first : first + n]
        first += n
        highest = own.max(axis=1)
        there = np.take_along_axis(own, expected[:, d : d + 1], axis=1)[:, 0]
        differs = there < highest - TIE * np.maximum(np.abs(highest), 1.0)
        result[differs, d] = own.argmax(axis=1)[differs]
    return result
