"""Measure the real jobs on this machine: `python -m experiments.measure`.

Runs the torch jobs with 1 to all slots filled and as whole streams under varied plans, fits the
task-time model and writes it as a profile: what simulations of this machine are made with. Nothing
is written before all of it is measured; interrupted, it begins anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from envs.cluster.config import CAPACITY_INTERVAL_S
from experiments.cli import run_main
from experiments.console import one_line, progress_bar, say, show_table, shown_path
from experiments.errors import ConfigError
from experiments.files import write_csv
from experiments.provenance import command_line, machine, machine_summary
from experiments.record import COMPLETE, RunFolder, open_run, run_path
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
    # More threads of torch would compete with the slots, and wait for each other on a busy machine.
    torch.set_num_threads(1)
    return security_jobs(application=application)


def measure(config: DictConfig, report: Report = silent) -> RunFolder:
    """Measure the configured application, or return the finished measurement.

    Args:
        config: With `application`, `env.slots`, `size.measure`.
        report: Told about progress.

    Returns:
        The run folder, with `profile.json`, `fit.csv` (goodness of the model per stage) and
        `task_times.csv.gz` (batch -1: stages by themselves).

    Raises:
        ConfigError: The application has no real jobs.
        ValueError: So little time that a stage or a number of busy slots is not covered.
    """
    own = _own_config(config)
    if (run_path(own) / COMPLETE).exists():
        return open_run(own)
    report("preparing the jobs", 0, 100)
    application, declared = application_of(config)
    jobs = real_jobs(application)
    report("preparing the jobs", 100, 100)
    slots = int(config.env.slots or declared.slots)
    table = _task_times(config, jobs, slots, report)
    origin = f"measured on {machine_summary()} by `{command_line()}`"
    cores = int(machine()["cores"])
    fit = fit_profile(application, table, declared_waits(jobs), slots, cores, origin)
    run = open_run(own)
    write_csv(run.path / TASK_TIMES, pd.DataFrame(table))
    write_csv(run.path / FIT, pd.DataFrame([asdict(stage) for stage in fit.stages]))
    fit.profile.save(run.path / PROFILE)
    run.mark_complete()
    return run


def _task_times(
    config: DictConfig, jobs: StreamJobs, slots: int, report: Report
) -> NDArray[np.void]:
    """Measure stages by themselves, then streams at rates that these can keep up with."""
    settings, seed = config.size.measure, int(config.seed)
    budget_s = slots * float(settings.seconds_per_level)
    stages = measure_stages(jobs, slots, budget_s, seed, _percent(report, "stages"))
    first = fit_profile(jobs.application, stages, declared_waits(jobs), slots, 1, "stages only")
    rate = capacity_per_s(jobs.application, first.profile, slots, CAPACITY_INTERVAL_S)
    plans = varied_settings(rate, slots)
    seconds = float(settings.seconds_per_run)
    runs = measure_runs(jobs, slots, plans, seconds, seed, _percent(report, "streams"))
    return np.concatenate([stages, *(run.task_times for run in runs)])


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
    """Return a progress callback of the measurement that reports whole per cent."""
    return lambda fraction, detail: report(f"measuring {what}", round(100 * fraction), 100)


def task(config: DictConfig) -> None:
    """Measure with a progress bar and show how good the model is."""
    with progress_bar() as bar:
        run = measure(config, one_line(bar))
    table = pd.read_csv(run.path / FIT)
    table["p95 error %"] = 100.0 * table["p95_error"]
    table["explained %"] = 100.0 * table["explained"]
    columns = ["job", "stage", "tasks", "mean_s", "p95 error %", "explained %"]
    show_table("task times and how well the model describes them", table, columns)
    path = run.path / PROFILE
    shown = shown_path(path)
    say(f"profile: {shown}")
    # Hydra wants a value with '=' in it in quotes, and the shell wants these in quotes, too.
    say(f"to simulate this machine add: 'env.profile=\"{shown}\"'")


if __name__ == "__main__":
    run_main(task)
