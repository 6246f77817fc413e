"""Measure the real jobs on this machine: `python -m experiments.measure`.

Runs the torch jobs with 1 to all slots filled and as whole streams under varied plans, fits the
task-time model and writes it as a profile: what simulations of this machine are made with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import cast

import numpy as np
import pandas as pd
import psutil
from omegaconf import DictConfig, OmegaConf

from envs.cluster.config import CAPACITY_INTERVAL_S
from experiments.cli import run_main
from experiments.console import CONSOLE, progress_bar, show_table
from experiments.errors import ConfigError
from experiments.files import write_csv
from experiments.provenance import command_line, machine_summary
from experiments.record import RunFolder, open_run
from experiments.training import Report, silent
from experiments.worlds import application_of
from runtime.application import Application
from runtime.cluster.jobs import SECURITY_EVENTS, security_jobs
from runtime.cluster.measure import declared_waits, measure_runs, measure_stages, varied_settings
from runtime.cluster.stream_jobs import StreamJobs
from simulators.cluster.bounds import capacity_per_s
from simulators.cluster.fit import fit_profile

PROFILE, FIT, TASK_TIMES = "profile.json", "fit.csv", "task_times.csv.gz"


def real_jobs(application: Application) -> StreamJobs:
    """Return the real computations of an application.

    Raises:
        ConfigError: There are none.
    """
    if application.name != SECURITY_EVENTS.name:
        raise ConfigError(
            f"application {application.name!r} exists in the simulator only; real jobs exist for "
            f"{SECURITY_EVENTS.name!r}"
        )
    return security_jobs(application=application)


def measure(config: DictConfig, report: Report = silent) -> RunFolder:
    """Measure the configured application, or return the finished measurement.

    Args:
        config: With `application`, `env.slots`, `size.measure`.
        report: Told about progress.

    Raises:
        ConfigError: The application has no real jobs.
    """
    application, declared = application_of(config)
    jobs = real_jobs(application)
    slots = int(config.env.slots or declared.slots)
    run = open_run(_own_config(config))
    if run.complete:
        return run
    settings = config.size.measure
    seed = int(config.seed)
    table = measure_stages(
        jobs, slots, float(settings.seconds_per_level), seed, _percent(report, "stages")
    )
    rate = capacity_per_s(application, declared, slots, CAPACITY_INTERVAL_S)
    runs = measure_runs(
        jobs,
        slots,
        varied_settings(rate, slots),
        float(settings.seconds_per_run),
        seed,
        _percent(report, "streams"),
    )
    everything = np.concatenate([table, *(r.task_times for r in runs)])
    origin = f"measured on {machine_summary()} by `{command_line()}`"
    cores = len(psutil.Process().cpu_affinity())
    fit = fit_profile(application, everything, declared_waits(jobs), slots, cores, origin)
    write_csv(run.path / TASK_TIMES, pd.DataFrame(everything))
    write_csv(run.path / FIT, pd.DataFrame([asdict(stage) for stage in fit.stages]))
    fit.profile.save(run.path / PROFILE)
    run.mark_complete()
    return run


def _own_config(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that a measurement depends on."""
    size = {"name": config.size.name, "measure": config.size.measure}
    own = {
        "study": {"name": "measure"},
        "size": size,
        "env": {"name": config.env.name, "slots": config.env.slots},
        "application": config.application,
        "seed": config.seed,
        "data": config.data,
        "results": config.results,
    }
    return cast("DictConfig", OmegaConf.create(own))


def _percent(report: Report, what: str) -> Callable[[float, str], None]:
    return lambda fraction, detail: report(f"measuring {what}", round(100 * fraction), 100)


def task(config: DictConfig) -> None:
    """Measure with a progress bar and show how good the model is."""
    with progress_bar() as bar:
        line = bar.add_task("starting", total=100)
        run = measure(
            config,
            lambda what, done, total: bar.update(
                line, description=what, completed=done, total=total
            ),
        )
    columns = ["job", "stage", "tasks", "mean_s", "mean_error", "p95_error", "explained"]
    show_table("task times and their model", pd.read_csv(run.path / FIT), columns)
    CONSOLE.print(f"profile: {run.path / PROFILE}")
    CONSOLE.print("use it with env.profile=<that file>")


if __name__ == "__main__":
    run_main(task)
