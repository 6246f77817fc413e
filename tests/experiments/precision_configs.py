"""Small configurations of precision servers, and profiles as calibration leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from experiments.cli import CONF
from simulators.precision.synthetic import SyntheticParameters, synthetic_profile


def compose_precision(*words: str, root: Path | None = None) -> DictConfig:
    """Compose a precision server; Hydra has been initialised."""
    fixed = ["env=staged_precision", "size=smoke", f"data.root={root or 'null'}"]
    return compose("config", overrides=[*fixed, *words])


def compose_shipped(*words: str) -> DictConfig:
    """Compose what is shipped, with nothing changed but what the words say."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(words))


@contextmanager
def composing(root: Path) -> Iterator[Callable[..., DictConfig]]:
    """Compose servers of the synthetic bank whose runs share a folder of results; one thread."""
    GlobalHydra.instance().clear()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose_precision(f"results.root='{root}'", *words)
    torch.set_num_threads(before)


def calibrated(folder: Path, samples: int = 64) -> list[str]:
    """Write two small profiles and a calibration; return the overrides that name them."""
    for seed, name in enumerate(("profile", "held_out_profile")):
        profile = synthetic_profile(SyntheticParameters(samples=samples, seed=seed))
        profile.save(folder / f"{name}.npz")
    chosen = {
        "fp32": [0, 0, 0, 0],
        "training mode, local, cascade": [0, 2, 2, 0],
        "training mode, end-to-end, cascade": [1, 2, 2, 2],
    }
    (folder / "calibration.json").write_text(json.dumps({"chosen": chosen}))
    names = ("profile", "held_out_profile")
    return [f"env.{name}='{folder / f'{name}.npz'}'" for name in names]
