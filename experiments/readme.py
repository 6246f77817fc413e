"""Renew what the README generates: `python -m experiments.readme`, or `make readme`.

The table of figures comes from the claims, the observation table from the codec's layout, and the
picture, if it is missing, from an episode of the environment.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
from matplotlib import image

from envs import STREAM_CLUSTER
from envs.cluster.config import default_config
from experiments.claims import README, REFERENCE, ClaimError, update_readme
from experiments.files import atomic_path, write_text
from runtime.cluster.actions import ListedActions
from runtime.cluster.observation import ClusterCodec, Entry
from runtime.plan import Plan, Policy, Pools
from simulators.arrivals import PoissonArrivals

PICTURE = REFERENCE / "gantt.png"
_DRAWN = Plan(
    pools=Pools.HARD,
    share=0.6,
    independent_policy=Policy.FAIR,
    parallelism=8,
    batch_interval_s=1.0,
)
_DRAWN_LOAD = 0.6
BEGIN, END = "<!-- observation:begin -->", "<!-- observation:end -->"


def observation_table() -> str:
    """Return the observation of the default environment as a Markdown table."""
    layout = ClusterCodec(default_config().scale()).layout
    header = ["#", "name", "unit", "low", "high", "encoding", "meaning"]
    rows = [header, ["---"] * len(header)]
    for k, entry in enumerate(layout):
        high, step = _number(entry.high), _encoding(entry)
        rows.append([str(k), f"`{entry.name}`", entry.unit, "0", high, step, entry.meaning])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _encoding(entry: Entry) -> str:
    return f"log, step {_number(entry.log_step)}" if entry.log_step > 0 else "linear"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def with_observation(text: str) -> str:
    """Return the README with the present observation table.

    Raises:
        ClaimError: The markers are not there exactly once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ClaimError(f"expected one {BEGIN} and one {END} after it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{observation_table()}\n{END}{rest.split(END)[1]}"


def draw_picture(path: Path = PICTURE, steps: int = 20) -> None:
    """Draw the environment's Gantt chart after some decisions for hard pools.

    Args:
        path: Where the PNG goes.
        steps: Number of decisions.
    """
    config = default_config()
    config = replace(
        config,
        arrivals=PoissonArrivals(0.5, _DRAWN_LOAD * config.capacity_per_s),
        actions=ListedActions({"drawn": _DRAWN}),
    )
    env = gymnasium.make(STREAM_CLUSTER, config=config, render_mode="rgb_array")
    env.reset(seed=0)
    for _ in range(steps):
        env.step(0)
    with atomic_path(path) as temporary:
        image.imsave(temporary, np.asarray(env.render()))


def main() -> None:
    """Renew the repository's README and the picture it shows."""
    try:
        changed = update_readme()
        text = README.read_text(encoding="utf-8")
        renewed = with_observation(text)
    except ClaimError as error:
        print(f"rheostat: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if renewed != text:
        write_text(README, renewed)
        changed = True
    if not PICTURE.exists():
        draw_picture()
    print("README.md changed" if changed else "README.md is up to date")


if __name__ == "__main__":
    main()
