from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from experiments.errors import ConfigError, did_you_mean, explain_run, unknown_key, unknown_name
from runtime.plan import Plan


def caught(function: Callable[[], object]) -> BaseException:
    """Return the exception of a call, with its traceback."""
    try:
        function()
    except Exception as error:
        return error
    pytest.fail("nothing was raised")


def test_did_you_mean() -> None:
    assert did_you_mean("treshold", ["threshold", "random"]) == "; did you mean 'threshold'?"
    assert did_you_mean("xyz", ["threshold", "random"]) == ""


def test_unknown_name_lists_what_is_known() -> None:
    error = unknown_name("agent", "ppoo", ["random", "ppo"])
    assert str(error) == "unknown agent 'ppoo'; did you mean 'ppo'? expected one of ppo, random"
    assert str(unknown_name("agent", "x", ["ppo"])) == "unknown agent 'x'; expected one of ppo"


def test_unknown_key_finds_the_last_part_anywhere() -> None:
    assert unknown_key("slot", {"env.slots", "env"}).endswith("did you mean 'env.slots'?")


def test_our_raised_value_error_is_a_mistake() -> None:
    error = caught(lambda: Plan(parallelism=0))
    assert explain_run(error) == str(error)


def test_config_error_is_a_mistake_wherever_it_comes_from() -> None:
    assert explain_run(ConfigError("mend me")) == "mend me"


def test_missing_value_names_its_key() -> None:
    error = caught(lambda: OmegaConf.create({"agent": {"name": "???"}}).agent.name)
    assert isinstance(error, MissingMandatoryValue)
    assert explain_run(error) == "Missing mandatory value: agent.name; full_key: agent.name"


@pytest.mark.parametrize(
    "bug",
    [
        lambda: np.zeros(3) + np.zeros(4),
        lambda: json.loads("{"),
        lambda: OmegaConf.create({"a": 1}).b.c,
        lambda: {}["absent"],
    ],
)
def test_other_errors_are_bugs(bug: Callable[[], object]) -> None:
    assert explain_run(caught(bug)) is None
