"""Training several agents at once, one process each."""

from __future__ import annotations

import os
import queue
from multiprocessing import get_context
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from agents.tuning import worker_pool
from experiments.training import Report, train_agent


def _train(work: tuple[dict[str, Any], Any, Any]) -> None:
    """Train one agent in a worker process, sending its progress home.

    A request to stop is noticed at the next progress report and handled like Ctrl-C, which leaves
    a checkpoint.
    """
    content, messages, stop = work
    if stop.is_set():
        return
    # A process for each core: threads of one would only wait for those of the others.
    torch.set_num_threads(1)

    def report(what: str, done: int, total: int) -> None:
        messages.put((what, done, total))
        if stop.is_set():
            raise KeyboardInterrupt

    try:
        train_agent(OmegaConf.create(content), report)
    except KeyboardInterrupt:
        if not stop.is_set():
            raise


def train_all(configs: list[DictConfig], report: Report) -> None:
    """Make several agents in parallel, as many at once as there are cores.

    Interrupting it lets every agent in training leave a checkpoint first.

    Args:
        configs: Settled configurations, one per agent.
        report: Told about the progress of each.
    """
    with (
        get_context("spawn").Manager() as manager,
        worker_pool(min(len(configs), os.cpu_count() or 1)) as pool,
    ):
        messages, stop = manager.Queue(), manager.Event()
        plain: list[Any] = [OmegaConf.to_container(config, resolve=True) for config in configs]
        result = pool.map_async(_train, [(c, messages, stop) for c in plain], chunksize=1)
        try:
            while not result.ready():
                result.wait(0.2)
                _forward(messages, report)
            result.get()
        except BaseException:
            stop.set()
            result.wait()
            raise


def _forward(messages: Any, report: Report) -> None:
    """Pass waiting messages on."""
    while True:
        try:
            report(*messages.get_nowait())
        except queue.Empty:
            return
