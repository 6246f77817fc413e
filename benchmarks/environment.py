"""Speed of what stands around the engine: environments, training, one decision.

The workload is the budget's (see `benchmarks.engine`), with the reward, observation and guards that
agents meet. `security_events` is measured beside it: a real application with nine stages.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from agents.export import bundle_of, network_of
from agents.learned import PPOPreset, make_ppo, torch_threads
from benchmarks.engine import HARD, PERIOD_S, TICK_S, Workload
from benchmarks.rows import BenchmarkRow, measure
from envs.cluster.config import StreamClusterConfig, default_config
from envs.cluster.env import StreamClusterEnv, StreamClusterVectorEnv
from runtime.cluster.actions import FieldActions
from runtime.policy import BundlePolicy
from runtime.snapshot import Snapshot
from simulators.arrivals import PoissonArrivals

SINGLE_AIM, PPO_AIM = 100_000, 50_000  # steps per second
DECISION_AIM_US, DECISION_P99_AIM_US = 50, 200
_LEVELS = FieldActions()
_ACTION = np.array(  # the plan of the budget's workload
    [
        _LEVELS.pools.index(HARD.pools),
        _LEVELS.share.index(HARD.share),
        _LEVELS.policies.index(HARD.independent_policy),
        _LEVELS.policies.index(HARD.dependent_policy),
        _LEVELS.parallelism.index(HARD.parallelism),
        _LEVELS.interval_s.index(HARD.batch_interval_s),
        _LEVELS.idle_batches.index(HARD.idle_batches),
    ]
)


def budget_world() -> StreamClusterConfig:
    """Return the budget's workload as the world of an environment."""
    workload = Workload()
    application, profile, slots = workload.cluster()
    return StreamClusterConfig(
        application=application,
        profile=profile,
        slots=slots,
        arrivals=PoissonArrivals(TICK_S, workload.records_per_s),
        starts=(0, 10_000),
        period_s=PERIOD_S,
        initial_plan=workload.plan,
        actions=_LEVELS,
    )


WORLDS = {"budget's workload": budget_world, "security_events": default_config}


def measure_single(steps: int = 200, repetitions: int = 30) -> list[BenchmarkRow]:
    """Return steps/s of one Gymnasium environment, and what a step consists of."""
    rows = []
    for name, make in WORLDS.items():
        env = StreamClusterEnv(make())
        env.reset(seed=0)

        def work(env: StreamClusterEnv = env) -> None:
            for _ in range(steps):
                env.step(_ACTION)

        (timing,) = measure(work, runs=repetitions, before=[lambda env=env: env.reset()])
        note = f"aim {SINGLE_AIM:,}" if not rows else ""
        rows.append(timing.rate(f"one environment, {name}", steps, "steps/s", note))
    return rows + measure_parts()


def measure_parts(calls: int = 200, repetitions: int = 30) -> list[BenchmarkRow]:
    """Return the time of codec, guards, reward and engine in a step of one environment."""
    env = StreamClusterEnv(budget_world())
    env.reset(seed=0)
    for _ in range(20):
        env.step(_ACTION)
    clusters = env.clusters
    signals, plans = clusters.engine.signals.copy(), clusters.plans.copy()
    failed, unchanged = np.zeros(1), np.zeros(1, dtype=bool)
    actions, until_s = _ACTION[None], signals[:, 0].copy()
    parts = {
        "codec": lambda: clusters.codec.encode(signals),
        "guards": lambda: clusters.guards.apply_rows(plans, signals),
        "reward": lambda: clusters.reward.terms(signals, failed, unchanged),
        "decoding of the action": lambda: clusters.config.actions.decode(actions, plans),
        "engine, a period": lambda: clusters.engine.advance(plans, until_s),
    }

    def repeated(name: str) -> None:
        for _ in range(calls):
            if name == "engine, a period":
                until_s[:] += PERIOD_S
            parts[name]()

    rows = []
    for name in parts:
        start = [lambda: (env.reset(), until_s.fill(0.0))]
        (timing,) = measure(lambda name=name: repeated(name), runs=repetitions, before=start)
        rows.append(
            timing.row(f"  in it: {name}", 1e6 * float(np.median(timing.cpu_s)) / calls, "us")
        )
    return rows


def measure_vector(n: int = 256, steps: int = 50, repetitions: int = 20) -> list[BenchmarkRow]:
    """Return env-steps/s of the vector face."""
    rows = []
    for name, make in WORLDS.items():
        envs = StreamClusterVectorEnv(n, make())
        envs.reset(seed=0)
        actions = np.tile(_ACTION, (n, 1))

        def work(envs: StreamClusterVectorEnv = envs, actions: np.ndarray = actions) -> None:
            for _ in range(steps):
                envs.step(actions)

        (timing,) = measure(work, runs=repetitions)
        label = f"vector environment of {n}, {name}"
        rows.append(timing.rate(label, n * steps, "env-steps/s"))
    return rows


def measure_training(updates: int = 5) -> list[BenchmarkRow]:
    """Return decisions/s of the PPO preset, all included, and the shares of its phases."""
    rows = []
    for name, make in WORLDS.items():
        preset = PPOPreset()
        model = make_ppo(preset, make(), seed=0)
        decisions = preset.n_envs * preset.n_steps
        with torch_threads(1):
            model.learn(decisions)  # warms up
            phases = _Phases(model)
            (timing,) = measure(
                lambda model=model, n=decisions: model.learn(n, reset_num_timesteps=False),
                runs=updates,
            )
        note = phases.shares(float(timing.cpu_s.sum()))
        if not rows:
            note = f"aim {PPO_AIM:,}; {note}"
        rows.append(timing.rate(f"PPO preset, {name}", decisions, "steps/s", note))
    return rows


class _Phases:
    """Adds up the processor time of gradient steps and of environment steps of a model."""

    def __init__(self, model: object) -> None:
        self._seconds = {"gradient steps": 0.0, "environments": 0.0}
        self._wrap(model, "train", "gradient steps")
        self._wrap(model.env, "step", "environments")  # type: ignore[attr-defined]

    def _wrap(self, owner: object, method: str, phase: str) -> None:
        inner = getattr(owner, method)

        def timed(*arguments: object) -> object:
            start_s = time.process_time()
            result = inner(*arguments)
            self._seconds[phase] += time.process_time() - start_s
            return result

        setattr(owner, method, timed)

    def shares(self, total_s: float) -> str:
        """Return the phases in per cent of the whole; the rest is the policy's sampling."""
        shares = {name: 100.0 * s / total_s for name, s in self._seconds.items()}
        shares["policy and buffer"] = 100.0 - sum(shares.values())
        return ", ".join(f"{name} {share:.0f} %" for name, share in shares.items())


def decision_snapshots(count: int = 256) -> tuple[BundlePolicy, list[Snapshot]]:
    """Return a loaded policy (untrained weights decide as fast) and snapshots of an episode."""
    config = budget_world()
    model = make_ppo(replace(PPOPreset(), n_envs=1, batch_size=64), config, seed=0)
    policy = BundlePolicy(bundle_of("ppo", network_of(model), config, {}))
    env = StreamClusterEnv(config)
    env.reset(seed=0)
    snapshots = []
    for _ in range(count):
        env.step(_ACTION)
        snapshots.append(env.clusters.engine.snapshot())
    return policy, snapshots


def measure_decision(repetitions: int = 40) -> list[BenchmarkRow]:
    """Return median and 99th percentile of one decision of a loaded bundle, wall time."""
    policy, snapshots = decision_snapshots()
    times_s = []
    cpu_s = time.process_time()
    for _ in range(repetitions):
        for snapshot in snapshots:
            start_s = time.perf_counter()
            policy.decide(snapshot)
            times_s.append(time.perf_counter() - start_s)
    cpu_s = time.process_time() - cpu_s
    wall_s, cpu_us = float(np.sum(times_s)), 1e6 * cpu_s / len(times_s)
    median_us, p99_us, best_us = (1e6 * np.quantile(times_s, q) for q in (0.5, 0.99, 0.01))
    note = f"aim {DECISION_AIM_US}; best hundredth {best_us:.0f}, mean CPU time {cpu_us:.0f}"
    return [
        BenchmarkRow("a decision, median", float(median_us), "us", wall_s, cpu_s, None, note),
        BenchmarkRow(
            "a decision, p99",
            float(p99_us),
            "us",
            wall_s,
            cpu_s,
            None,
            f"aim {DECISION_P99_AIM_US}; wall time, preemptions by other programs included",
        ),
    ]


def measure_all() -> list[BenchmarkRow]:
    """Return all rows; about a minute."""
    return measure_single() + measure_vector() + measure_training() + measure_decision()
