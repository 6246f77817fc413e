"""Training several agents at once, one process each."""

from __future__ import annotations

import os
import queue
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.training import Report, train_agent


def _train(content: dict[str, Any], messages: Any) -> str:
    """Train one agent in a worker process, sending its progress home."""
    config = OmegaConf.create(content)
    run = train_agent(config, lambda *message: messages.put(message))
    return str(run.path)


def train_all(configs: list[DictConfig], report: Report) -> None:
    """Make several agents in parallel, as many at once as there are cores.

    Interrupting it interrupts the workers too; each leaves its checkpoint.

    Args:
        configs: Settled configurations, one per agent.
        report: Told about the progress of each.
    """
    context = get_context("spawn")
    workers = min(len(configs), os.cpu_count() or 1)
    with (
        SyncManager(ctx=context) as manager,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        messages = manager.Queue()
        plain = [OmegaConf.to_container(config, resolve=True) for config in configs]
        jobs: set[Future[str]] = {pool.submit(_train, content, messages) for content in plain}
        try:
            while jobs:
                done, jobs = wait(jobs, timeout=0.2, return_when=FIRST_COMPLETED)
                _forward(messages, report)
                for job in done:
                    job.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _forward(messages: Any, report: Report) -> None:
    """Pass waiting messages on."""
    while True:
        try:
            report(*messages.get_nowait())
        except queue.Empty:
            return
