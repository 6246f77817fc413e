"""Learning starts from a tuned rule: a policy is taught to decide as the rule does.

The rule decides on some training streams, then the policy does while the rule says what it would
have done (DAgger: Ross, Gordon and Bagnell, AISTATS 2011), so that the policy has seen where its
own mistakes lead. A rule reads all signals; what is hidden from the policy it cannot learn from it.

What is taught is neither to be unlearned nor to be the end. A policy that is sure of every decision
never tries another one: taught by a plan that never changed, its entropy was 1e-6, and 400,000
decisions changed nothing. So some of the actions that it is shown are random ones, which leaves the
likeliest action what it is. And a critic that knows nothing yet would spoil the first updates: it
learns alone before the policy goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from agents.learned import LearnedBatch, torch_threads
from agents.precision.rule import Rule
from envs.precision.config import StagedPrecisionConfig
from envs.precision.servers import Servers
from runtime.precision.actions import ActionCodec, LevelActions, TableActions
from runtime.precision.plan import PrecisionPlan

SERVERS, DECISIONS, ROUNDS, EPOCHS = 64, 512, 3, 6
"""Servers of a round, decisions of each in it, rounds (the rule decides in the first alone), and
how often all decisions so far are gone through after each."""
RANDOM_SHARE = 0.1
"""Share of the shown actions that are random ones."""
CRITIC_UPDATES = 4
"""Updates of the critic alone; their decisions do not count as training."""
_BATCH, _RATE = 1024, 1e-3
_KEY = 8_000_000  # keys of the streams that are shown

Shown = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Observations float32 [n, size] and the rule's actions, int64 [n, len(nvec)]."""


def imitate(model: PPO, config: StagedPrecisionConfig, rule: Rule) -> None:
    """Teach an untrained policy to decide as a rule does.

    Args:
        model: PPO or MaskablePPO.
        config: The simulated world, with training streams.
        rule: Who is imitated; where its plan is not on offer, the nearest one is.
    """
    shown: list[Shown] = []
    with torch_threads(1):
        for k in range(ROUNDS):
            shown.append(_decisions(config, rule, LearnedBatch(model) if k else None, k))
            _fit(model, shown, config.actions.nvec)
        _teach_critic(model)


def _decisions(
    config: StagedPrecisionConfig, rule: Rule, policy: LearnedBatch | None, number: int
) -> Shown:
    """Return what a rule would do where it, or a policy, decides."""
    servers = Servers(config, SERVERS)
    first = _KEY + number * SERVERS
    keys = np.arange(first, first + SERVERS, dtype=np.uint64)
    low, high = config.starts
    factors = np.resize(np.array(config.load_factors), SERVERS)
    starts = np.linspace(low, high, SERVERS).astype(np.int64)
    observation = servers.begin(keys, starts, factors)
    rule.forget(SERVERS)
    if policy is not None:
        policy.begin(servers)
    seen, taken = [], []
    for _ in range(DECISIONS):
        if servers.engine.finished.any():
            break
        signals = servers.engine.signals
        rows = rule.rows(signals)
        seen.append(observation.copy())
        taken.append(nearest_actions(config.actions, rows))
        own = rows if policy is None else policy.propose(observation, signals)
        observation = servers.serve_rows(own)
    return np.concatenate(seen), np.concatenate(taken)


def nearest_actions(actions: ActionCodec, rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the actions whose plans are nearest to some plans, int64 [n, len(nvec)].

    Args:
        actions: What is on offer.
        rows: float64 [n, 2 * S + 1].
    """
    distinct, place = np.unique(rows, axis=0, return_inverse=True)
    if isinstance(actions, LevelActions):
        found = np.stack([actions.nearest(PrecisionPlan.from_row(row)) for row in distinct])
    else:
        assert isinstance(actions, TableActions)
        s = rows.shape[1] // 2
        distance = np.abs(distinct[:, None] - actions.rows[None])
        # Where neither plan has a second pass, the levels of one are of no account.
        alone = (distinct[:, None, s] == 0.0) & (actions.rows[None, :, s] == 0.0)
        distance[..., s + 1 :] *= ~alone[..., None]
        distance[..., s] *= s  # a margin counts as much as one level in every stage
        found = distance.sum(axis=-1).argmin(axis=1)[:, None]
    return np.asarray(found[place.reshape(-1)], dtype=np.int64)


def _fit(model: PPO, shown: list[Shown], nvec: Sequence[int]) -> None:
    """Raise the likelihood of the actions that were shown."""
    policy: Any = model.policy
    observations = torch.as_tensor(np.concatenate([each[0] for each in shown]))
    actions = torch.as_tensor(np.concatenate([each[1] for each in shown]))
    choices = torch.as_tensor(nvec)
    optimiser = torch.optim.Adam(policy.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(model.seed or 0)
    policy.set_training_mode(True)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(actions), generator=generator).split(_BATCH):
            dice = torch.rand((2, len(chosen), len(nvec)), generator=generator)
            other = (dice[1] * choices).long()
            given = torch.where(dice[0] < RANDOM_SHARE, other, actions[chosen])
            if len(model.action_space.shape or ()) == 0:
                given = given[:, 0]
            _, log_probability, _ = policy.evaluate_actions(observations[chosen], given)
            optimiser.zero_grad()
            (-log_probability.mean()).backward()
            optimiser.step()
    policy.set_training_mode(False)


def _teach_critic(model: PPO) -> None:
    """Let the critic learn what the taught policy is worth, while that stays as it is."""
    policy: Any = model.policy
    actor = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    for parameter in actor:
        parameter.requires_grad_(False)
    model.learn(CRITIC_UPDATES * model.n_steps * model.n_envs)
    model.num_timesteps = 0  # training is still to begin
    for parameter in actor:
        parameter.requires_grad_(True)
