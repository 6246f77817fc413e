"""Constant plans, and the families of constant plans that tuned baselines come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from agents.deciders import Constant
from runtime.application import Application, count_share, default_parallelism
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan, Policy, Pools


class ConstantAgent(Constant[Plan]):
    """Always proposes the same plan."""


FAMILIES: dict[str, Callable[[Plan], bool]] = {
    # Spark's default at its best fixed interval.
    "spark_default": lambda p: (
        p.pools is Pools.SINGLE
        and p.parallelism == 1
        and p.idle_batches == 0
        and p.independent_policy is Policy.FIFO
    ),
    # How much is plain concurrency?
    "fifo": lambda p: (
        p.pools is Pools.SINGLE and p.idle_batches == 0 and p.independent_policy is Policy.FIFO
    ),
    "fair": lambda p: (
        p.pools is Pools.SINGLE and p.idle_batches == 0 and p.independent_policy is Policy.FAIR
    ),
    "single_best": lambda p: p.pools is Pools.SINGLE and p.idle_batches == 0,
    "idle_trigger": lambda p: p.idle_batches > 0,
    "static_best": lambda p: p.idle_batches == 0,
}
"""Families of constant plans by the name of the agent that is the best member on training data."""


def plan_grid(levels: FieldActions) -> list[Plan]:
    """Return every distinct constant plan that the levels allow.

    A single pool has neither share nor second policy, so those do not multiply its plans.
    """
    plans = []
    for pools in levels.pools:
        single = pools is Pools.SINGLE
        shares = (0.5,) if single else levels.share
        seconds = (None,) if single else levels.policies
        for share, first, second, p, interval_s, idle in product(
            shares,
            levels.policies,
            seconds,
            levels.parallelism,
            levels.interval_s,
            levels.idle_batches,
        ):
            plans.append(
                Plan(
                    pools=pools,
                    share=share,
                    independent_policy=first,
                    dependent_policy=first if second is None else second,
                    parallelism=p,
                    batch_interval_s=interval_s,
                    idle_batches=idle,
                )
            )
    return plans


def neighbours(plan: Plan, levels: FieldActions) -> list[Plan]:
    """Return the plans that differ from a plan in one field, for all levels of that field."""
    choices: dict[str, Sequence[Any]] = {
        "pools": levels.pools,
        "independent_policy": levels.policies,
        "parallelism": levels.parallelism,
        "batch_interval_s": levels.interval_s,
        "idle_batches": levels.idle_batches,
    }
    if plan.pools is not Pools.SINGLE:
        choices |= {"share": levels.share, "dependent_policy": levels.policies}
    changed = [replace(plan, **{name: v}) for name, values in choices.items() for v in values]
    return [other for other in changed if other != plan]


def count_share_plans(application: Application, slots: int, levels: FieldActions) -> list[Plan]:
    """Return the candidates of `count_share`: claims 1 and 2 without feedback.

    Hard pools split by job counts, FAIR for the independent and FIFO for the dependent pool, the
    default parallelism; only the interval is left to tune.
    """
    return [
        Plan(
            pools=Pools.HARD,
            share=count_share(application),
            independent_policy=Policy.FAIR,
            dependent_policy=Policy.FIFO,
            parallelism=default_parallelism(application, slots),
            batch_interval_s=interval_s,
        )
        for interval_s in levels.interval_s
    ]
