from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import DictConfig

from experiments.cli import CONF
from experiments.errors import REPOSITORY, ConfigError
from experiments.precision.augment import Augmentation
from experiments.precision.data import Part, load_data
from experiments.precision.recipes import (
    Recipe,
    Trainer,
    accuracy,
    learning_rate,
    middle_widths,
    multiplications,
    random_widths,
    recalibrate,
)
from experiments.precision.training import (
    ACCURACY,
    NETWORK,
    PROGRESS,
    STATE,
    own_config,
    read_recipe,
    train_network,
)
from experiments.record import COMPLETE, run_path
from experiments.training import training_part
from runtime.precision.checkpoint import load_network, read_tensors
from runtime.precision.networks import NETWORKS, build_network

Compose = Callable[..., DictConfig]
SHORT = ("size.network.samples=160", "network.epochs=60")  # three epochs of two steps


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads gain nothing on nets this small, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def digits(n: int = 192) -> Part:
    return load_data("digits", None).train.first(n)


def test_training_is_a_function_of_the_seed() -> None:
    recipe = Recipe(epochs=2, batch=64, augment=Augmentation(shift=1))

    def trained(seed: int) -> dict[str, torch.Tensor]:
        trainer = Trainer("digits_cnn", recipe, digits(), seed)
        trainer.run_epoch()
        return trainer.state()

    first = trained(0)
    torch.rand(5)  # the global generator has no say
    again, other = trained(0), trained(1)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_training_learns_at_every_width() -> None:
    data = load_data("digits", None)
    recipe = Recipe(epochs=6, batch=32, learning_rate=1e-2)
    trainer = Trainer("digits_cnn", recipe, data.train.first(640), 0)
    losses = [trainer.run_epoch() for _ in range(recipe.epochs)]
    assert losses[-1] < 0.5 * losses[0]
    recalibrate(trainer.network, trainer.data, 0)
    for width, least in ((1.0, 0.8), (0.25, 0.5), (0.0625, 0.5)):
        widths = trainer.network.uniform(width)
        assert accuracy(trainer.network, data.calibration, widths) > least


def test_recalibration_gives_the_statistics_of_the_data() -> None:
    data = digits(200)
    network = build_network("digits_cnn", np.random.default_rng(0))
    recalibrate(network, data, 0)
    assert not network.training
    # The first normalisation sees the same whatever the widths after it; all samples fit a batch.
    for width in network.widths:
        plain = network.stages()[0].narrow(width)
        with torch.no_grad():
            seen = plain.enter[0](torch.from_numpy(data.x))
        norm = network.stages()[0].norms(width)[0]
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    for stage in network.stages():
        for norm in (norm for width in stage.widths for norm in stage.norms(width)):
            assert norm.momentum == 0.1
            assert norm.num_batches_tracked > 0


def test_learning_rate_rises_and_falls() -> None:
    recipe = Recipe(epochs=10, learning_rate=1e-2, warm_up=0.1)
    rates = np.array([learning_rate(recipe, step, 20) for step in range(200)])
    assert rates.argmax() == 20
    assert rates[20] == 1e-2
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert 0.0 < rates[-1] < 1e-5
    assert rates[110] == pytest.approx(0.5e-2)


def test_multiplications_by_hand() -> None:
    network = build_network("digits_cnn", np.random.default_rng(0))
    stem = 9 * 64 * (64 + 64 * 32)  # 1 -> 64 -> 32 channels on 64 pixels
    middle = 9 * 64 * 2 * 32 * 128
    deep = 16 * (9 * 32 * 128 + 9 * 128 * 64 + 32 * 64)  # on 16 pixels, the shortcut last
    head = 64 * 64 + 64 * 10
    one, whole = network.example(1), stem + middle + deep + head
    assert multiplications(network, one, network.uniform(1.0)) == whole
    shortcut = 16 * 32 * 64  # has no interior
    quarter = (stem + middle + head + deep - shortcut) // 4 + shortcut
    assert multiplications(network, one, network.uniform(0.25)) == quarter
    # a quarter of the pixels too; the head, which has none, stays at a quarter
    coarse = (stem + middle + deep - shortcut) // 16 + shortcut + head // 4
    assert multiplications(network, one, network.uniform(0.0625)) == coarse


def test_random_widths_reach_every_width_of_every_stage() -> None:
    network = build_network("fsdd_chain", np.random.default_rng(0))
    rng = np.random.default_rng(0)
    drawn = [random_widths(network, rng) for _ in range(60)]
    for stage, seen in zip(network.stages(), zip(*drawn, strict=True), strict=True):
        assert set(seen) == set(stage.widths)


def test_between_full_and_narrowest_there_are_mixes_and_the_middle() -> None:
    network = build_network("digits_cnn", np.random.default_rng(0))
    rng = np.random.default_rng(0)
    drawn = [middle_widths(network, rng) for _ in range(200)]
    assert 70 < drawn.count(network.uniform(0.25)) < 130
    assert len(set(drawn)) > 30


def test_shifted_images_are_moved_and_filled_with_zero() -> None:
    x = np.arange(1, 65, dtype=np.float32).reshape(1, 1, 8, 8).repeat(200, 0)
    moved = Augmentation(shift=2)(x, np.random.default_rng(0))
    offsets = set()
    for image in moved[:, 0]:
        row, column = np.unravel_index(np.abs(image - 28.0).argmin(), (8, 8))  # 28 was at [3, 3]
        offsets.add((row - 3, column - 3))
        top, left = max(0, row - 3), max(0, column - 3)
        assert (image[:top] == 0).all()
        assert (image[:, :left] == 0).all()
    assert offsets == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


def test_mirrors_turns_and_waves() -> None:
    x = np.random.default_rng(1).random((100, 3, 6, 6), dtype=np.float32)
    rng = np.random.default_rng(0)
    turned = Augmentation(mirror=True, rotate=True)(x, rng)
    kinds = set()
    for before, after in zip(x, turned, strict=True):
        options = [
            np.rot90(image, k, (1, 2)) for image in (before, before[..., ::-1]) for k in range(4)
        ]
        kinds.add([np.array_equal(after, option) for option in options].index(True))
    assert kinds == set(range(8))
    wave = np.zeros((50, 1, 40), np.float32)
    wave[:, 0, 20] = 0.4
    moved = Augmentation(shift=5, gain=2.0)(wave, rng)
    assert set(moved[:, 0].argmax(1)) == set(range(15, 26))
    assert moved.max() <= 0.8
    assert moved[:, 0].max(1).min() >= 0.2
    assert moved.dtype == np.float32


def test_a_share_of_the_samples_is_corrupted() -> None:
    x = np.random.default_rng(1).random((400, 1, 8, 8), dtype=np.float32)
    given = x.copy()
    changed = Augmentation(corrupt=0.5)(x, np.random.default_rng(0))
    share = (changed != x).reshape(len(x), -1).any(axis=1).mean()
    assert 0.35 < share < 0.6  # of half, a few an occlusion or a mild blur leaves as they are
    assert 0.0 <= changed.min()
    assert changed.max() <= 1.0
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(x, given)
    again = Augmentation(corrupt=0.5)(x, np.random.default_rng(0))
    np.testing.assert_array_equal(changed, again)
    np.testing.assert_array_equal(Augmentation()(x, np.random.default_rng(0)), x)
    with pytest.raises(ValueError, match=r"corrupt is 1\.5"):
        Augmentation(corrupt=1.5)


def test_interrupted_training_ends_in_the_identical_network(smoke: Compose, tmp_path: Path) -> None:
    straight = train_network(smoke(*SHORT))
    told: list[tuple[str, int, int]] = []
    written = {path: path.stat().st_mtime_ns for path in straight.path.iterdir()}
    assert train_network(smoke(*SHORT), lambda *words: told.append(words)).path == straight.path
    assert told == [], "trained again"
    assert {path: path.stat().st_mtime_ns for path in straight.path.iterdir()} == written

    def interrupt(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        if done == 3:  # in the middle of the second epoch
            raise KeyboardInterrupt

    config = smoke(*SHORT, f"results.root='{tmp_path / 'other'}'")
    with pytest.raises(KeyboardInterrupt):
        train_network(config, interrupt)
    folder = run_path(own_config(config))
    assert (folder / STATE).exists()
    assert not (folder / COMPLETE).exists()
    assert len(pd.read_csv(folder / PROGRESS)) == 1
    told.clear()
    resumed = train_network(config, lambda *words: told.append(words))
    assert told[1][1:] == (3, 6), "began anew"
    assert not (folder / STATE).exists()
    first, _ = read_tensors(straight.path / NETWORK)
    second, _ = read_tensors(resumed.path / NETWORK)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name in (PROGRESS, ACCURACY):
        assert (straight.path / name).read_text() == (resumed.path / name).read_text()


def test_the_command_trains_a_network_that_can_be_loaded(tmp_path: Path) -> None:
    words = [
        *(sys.executable, "-m", "experiments.train_network", "network=digits_cnn", "size=smoke"),
        f"results.root={tmp_path}",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RHEOSTAT_DATA"}
    result = subprocess.run(
        words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder,) = tmp_path.glob("runs/smoke/network-digits_cnn/none/none/*/seed=0")
    assert (folder / COMPLETE).exists()
    network, header = load_network(folder / NETWORK)
    table = pd.read_csv(folder / ACCURACY, dtype={"width": str}).set_index("width")
    assert header["accuracy"] == table["accuracy"].to_dict()
    assert list(table.index) == ["1", "0.25", "0.0625", "random"]
    data = load_data("digits", None).first(512)
    assert header["data"]["sha256"] == data.sha256()
    for width in network.widths:
        measured = accuracy(network, data.validation, network.uniform(width))
        assert measured == pytest.approx(table.loc[f"{width:g}", "accuracy"], abs=0.01)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "network").glob("*.yaml")))
def test_every_configuration_is_a_recipe_of_a_network(smoke: Compose, name: str) -> None:
    config = own_config(smoke(f"network={name}"))
    assert config.network.name == name
    assert name in NETWORKS
    recipe = read_recipe(config)
    assert recipe.epochs >= 1
    paper = read_recipe(own_config(smoke(f"network={name}", "size=paper")))
    assert paper.epochs == config.network.epochs


def test_the_network_is_no_part_of_how_agents_are_made(smoke: Compose) -> None:
    assert "network" not in training_part(smoke())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("network=fashion_cnn",), "'fashion_mnist' needs the data root"),
        (("+network.epoch=3",), "unknown key of network 'epoch'; did you mean 'epochs'"),
        (("network.epochs=0.5",), "network.epochs: .*could not be converted"),
        (("network.batch=0",), "batch, .*expected at least 1"),
        (("+network.distil=1.5",), "distil is 1.5; expected 0 to 1"),
        (("network.augment.shift=-1",), "shift and gain are -1"),
        (("size.network.epochs=0",), "size.network.epochs is 0.0; expected a share"),
        (("network.data=digit",), "unknown data set 'digit'; did you mean 'digits'"),
        (("network.name=digits_cn",), "unknown network 'digits_cn'; did you mean 'digits_cnn'"),
    ],
)
def test_mistakes_leave_no_run(smoke: Compose, words: tuple[str, ...], message: str) -> None:
    config = smoke(*words)
    with pytest.raises(ConfigError, match=message):
        train_network(config)
    assert not run_path(own_config(config)).exists()


def test_a_loss_that_explodes_stops_the_run() -> None:
    trainer = Trainer("digits_cnn", Recipe(epochs=1, batch=32), digits(64), 0)
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 0; lower network"):
        trainer.run_epoch()
