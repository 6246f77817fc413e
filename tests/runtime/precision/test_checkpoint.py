from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime.precision.checkpoint import (
    CheckpointError,
    load_network,
    read_tensors,
    save_network,
    write_tensors,
)
from runtime.precision.networks import build_network


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network = build_network("digits_cnn", np.random.default_rng(4))
    network = network.to(memory_format=torch.channels_last).train()
    for width in network.widths:  # statistics of every width differ from those of a new network
        network(network.example(16), network.uniform(width))
    path = tmp_path / "network.safetensors"
    save_network(path, network, {"seed": 4, "accuracy": {"1": 0.5}})
    return path


def test_what_is_read_computes_what_was_written(saved: Path) -> None:
    network, header = load_network(saved)
    assert not network.training
    assert (header["network"], header["seed"], header["accuracy"]) == ("digits_cnn", 4, {"1": 0.5})
    assert header["stages"] == ["stem", "middle", "deep", "head"]
    again = saved.with_name("again.safetensors")
    save_network(again, network, header)
    other, _ = load_network(again)
    x = network.example(5)
    for width in network.widths:
        widths = network.uniform(width)
        assert torch.equal(network(x, widths), other(x, widths))
    assert [path.name for path in saved.parent.iterdir() if path.name.startswith(".")] == []


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_tensors(saved, {}, {"loss": float("nan")})

    def full_disk(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("runtime.precision.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_tensors(saved, {"x": torch.zeros(2)}, {})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12] ^= 0xFF
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change(**header: object) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors, old = read_tensors(path)
        write_tensors(path, tensors, {**old, **header})

    return apply


def change_tensor(value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors, header = read_tensors(path)
        name = "chain.head.full.logits.weight"
        write_tensors(path, {**tensors, name: value(tensors[name])}, header)

    return apply


def drop_tensor(path: Path) -> None:
    tensors, header = read_tensors(path)
    del tensors["chain.head.full.logits.weight"]
    write_tensors(path, tensors, header)


def foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "cannot be read"),
        (flip_a_byte, "cannot be read"),
        (cut, "cannot be read"),
        (foreign, "has no header of ours"),
        (change(format=99), "has format 99; expected 1"),
        (change(network="digits_cn"), "unknown network 'digits_cn'; did you mean 'digits_cnn'"),
        (change(network="fashion_cnn"), "does not fit network 'fashion_cnn'"),
        (drop_tensor, r"chain.head.full.logits.weight \(1 in all\)"),
        (change_tensor(lambda w: w[:, :2]), r"chain.head.full.logits.weight \(1 in all\)"),
        (change_tensor(lambda w: w * torch.nan), "logits.weight holds numbers that are not finite"),
    ],
)
def test_damaged_files_are_refused(
    saved: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        load_network(saved)
