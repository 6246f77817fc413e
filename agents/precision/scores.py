"""Scores of many rules and constant plans on the same streams, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.deciders import Worlds
from agents.precision.api import ConstantRows, Episodes, effective_accuracies
from agents.precision.rule import Rule
from envs.precision.config import StagedPrecisionConfig

_SERVERS_AT_ONCE = 512


class SideBySide:
    """Runs several rules at once, each on its own block of servers."""

    observes = False

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Keep the rules; each decides for an equal share of the servers, in order.

        Raises:
            ValueError: Rules that decide beside rules that do not.
        """
        kinds = {rule.decides for rule in rules}
        if len(kinds) > 1:
            raise ValueError("rules that always give the same plan are run apart from others")
        self._rules, self.decides = rules, kinds == {True}

    def begin(self, servers: Worlds) -> None:
        """Let every rule forget the past.

        Raises:
            ValueError: The servers cannot be shared out equally.
        """
        if servers.n % len(self._rules):
            raise ValueError(f"{servers.n} servers cannot be shared by {len(self._rules)} rules")
        self._share = servers.n // len(self._rules)
        for rule in self._rules:
            rule.forget(self._share)

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Ask every rule for its block; see `agents.deciders.BatchDecider`."""
        m = self._share
        blocks = [rule.rows(signals[k * m : (k + 1) * m]) for k, rule in enumerate(self._rules)]
        return np.concatenate(blocks)


def rule_accuracies(
    config: StagedPrecisionConfig,
    rules: Sequence[Rule],
    episodes: Episodes,
    on_progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Return the effective accuracy of each rule in each episode, float64 [rules, episodes].

    Args:
        config: The simulated world.
        rules: Different objects: each keeps a past.
        episodes: Which streams, common to all rules.
        on_progress: Told how many rules are done.
    """
    n = len(episodes.keys)
    result = np.empty((len(rules), n))
    done = 0
    for kind in (True, False):
        numbers = [i for i, rule in enumerate(rules) if rule.decides is kind]
        for chunk in _chunks(len(numbers), n):
            own = [numbers[i] for i in chunk]
            agent = SideBySide([rules[i] for i in own])
            scores = effective_accuracies(config, agent, _repeated(episodes, len(own)))
            result[own] = scores.reshape(len(own), n)
            done += len(own)
            on_progress(done)
    return result


def row_accuracies(
    config: StagedPrecisionConfig,
    rows: NDArray[np.float64],
    episodes: Episodes,
    on_progress: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Return the effective accuracy of each constant plan in each episode, float64 [M, episodes].

    Args:
        config: The simulated world.
        rows: float64 [M, 2 * S + 1], the plans.
        episodes: Which streams, common to all plans.
        on_progress: Told how many plans are done.
    """
    n = len(episodes.keys)
    result = np.empty((len(rows), n))
    for chunk in _chunks(len(rows), n):
        agent = ConstantRows(np.repeat(rows[chunk], n, axis=0))
        scores = effective_accuracies(config, agent, _repeated(episodes, len(chunk)))
        result[chunk] = scores.reshape(len(chunk), n)
        on_progress(chunk.stop)
    return result


def _chunks(items: int, episodes: int) -> list[range]:
    """Return ranges of items whose servers are simulated at once."""
    size = max(1, _SERVERS_AT_ONCE // episodes)
    return [range(i, min(i + size, items)) for i in range(0, items, size)]


def _repeated(episodes: Episodes, times: int) -> Episodes:
    """Return the same episodes several times over."""
    return Episodes(np.tile(episodes.keys, times), np.tile(episodes.starts, times))
