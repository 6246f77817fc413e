"""Commands of results: typed again, they give the configuration that made the result."""

from __future__ import annotations

import shlex

import pytest
from omegaconf import OmegaConf

from experiments.precision.commands import bank_command, stream_command
from tests.experiments.precision_configs import compose_shipped

USUAL = ("env=staged_precision", "size=paper", "network=fsdd_chain")


def typed(command: str) -> list[str]:
    """Return Hydra's overrides of a `make` command, as two shells read them."""
    make, _, size, *rest = shlex.split(command)
    assert (make, size.split("=")[0]) == ("make", "SIZE")
    words = [f"size={size.removeprefix('SIZE=')}"]
    for word in rest:
        words += shlex.split(word.removeprefix("ARGS="))
    return words


def test_where_nothing_is_changed_a_command_says_what_it_is_about_and_no_more() -> None:
    config = compose_shipped(
        *USUAL, "record=true", "env.profile=made/by/the/flow", "env.stream=drift"
    )
    assert bank_command(config) == 'make calibrate SIZE=paper ARGS="network=fsdd_chain record=true"'
    expected = 'SIZE=paper record=true ARGS="env=staged_precision network=fsdd_chain"'
    assert stream_command(config) == f"make reproduce {expected}"
    assert stream_command(config, "headroom") == f"make headroom {expected}"


@pytest.mark.parametrize(
    "changes",
    [
        ["seed=3", "env.deadline_s=0.02", "env.conditions.clean_s=4.5", "env.hidden=[load,margin]"],
        ["workload=diurnal", "workload.load=0.5", "size.precision.streams=[both]"],
        ["env.safe='training mode, local'", "env.guards.latency_target_s=0.01"],
        ["drive.tries=5", "drive.agents=[static_best,ppo]", "size.precision.drive.tries=1"],
        [
            "workload.factors=[{kind: sine, amplitude: 0.5, period_s: 60.0}]",
            "env.shadow_fraction=0",
        ],
        ["network.epochs=4", "bank.levels=[fp32,int8]", "calibration.conditions=[clean,noise-3]"],
        ["size.network.samples=500", "size.latencies.rounds=10", "bank.percentile=99.9"],
    ],
)
def test_a_command_typed_again_gives_the_same_configuration(changes: list[str]) -> None:
    config = compose_shipped(*USUAL, "record=true", *changes)
    again = compose_shipped(*typed(stream_command(config)))
    assert OmegaConf.to_container(again, resolve=True) == OmegaConf.to_container(
        config, resolve=True
    )


def test_the_command_of_a_bank_says_nothing_of_streams() -> None:
    config = compose_shipped(
        *USUAL, "calibration.profiled=0", "bank.levels=[fp32,int8]", "env.max_batch=4"
    )
    words = "network=fsdd_chain record=true 'bank.levels=[fp32,int8]' calibration.profiled=0"
    assert bank_command(config) == f'make calibrate SIZE=paper ARGS="{words}"'
