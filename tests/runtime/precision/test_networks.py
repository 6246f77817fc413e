from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from runtime.precision.networks import NETWORKS, build_network
from runtime.precision.slimmable import NORMS, SlimmableNetwork, SlimmableStage

# What a lowering has to know about; a network that needs more must be looked at with it.
OPERATIONS = {
    *("conv2d", "batch_norm", "relu", "mean.dim", "linear", "layer_norm", "gelu"),
    *("scaled_dot_product_attention", "add.Tensor", "mul.Tensor", "pow.Tensor_Scalar", "log"),
    *("clamp", "reshape", "flatten.using_ints", "permute", "transpose.int", "unsqueeze"),
    *("select.int", "upsample_nearest2d.vec"),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads gain nothing on so little, and wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def settled(name: str) -> SlimmableNetwork:
    """A network in evaluation mode whose normalisations are not trivial."""
    network = build_network(name, np.random.default_rng(7))
    generator = torch.Generator().manual_seed(3)
    for norm in network.modules():
        if isinstance(norm, NORMS):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.data.copy_(0.5 + noise)
    return network.eval()


def borders(network: SlimmableNetwork, n: int = 3) -> list[torch.Tensor]:
    """What goes into each stage, and what comes out of the last one."""
    values = [network.example(n)]
    with torch.no_grad():
        for stage in network.stages():
            values.append(stage(values[-1]))
    return values


@pytest.mark.parametrize("name", NETWORKS)
def test_composes_at_every_width_and_mix(name: str) -> None:
    network = settled(name)
    assert 4 <= len(network.stage_names) <= 8
    assert network.stage_names == tuple(network.chain)
    x = network.example(3)
    rng = np.random.default_rng(0)
    mixes = [network.uniform(width) for width in network.widths]
    mixes += [tuple(rng.choice(s.widths) for s in network.stages()) for _ in range(4)]
    answers = []
    with torch.no_grad():
        for mix in mixes:
            answers.append(network(x, mix))
            assert answers[-1].shape == (3, network.classes)
            value = x
            for module in network.plain_stages(mix):
                value = module(value)
            torch.testing.assert_close(value, answers[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network(x), answers[0])
    assert not torch.allclose(answers[0], answers[1])
    assert not torch.allclose(answers[1], answers[2])


@pytest.mark.parametrize("name", NETWORKS)
def test_borders_have_the_same_shape_at_every_width(name: str) -> None:
    network = settled(name)
    values = borders(network)
    for stage, before, after in zip(network.stages(), values, values[1:], strict=False):
        for width in stage.widths:
            with torch.no_grad():
                assert stage(before, width).shape == after.shape
                assert stage.narrow(width)(before).shape == after.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_narrow_shares_storage_and_costs_less(name: str) -> None:
    network = settled(name)
    for stage in network.stages():
        whole = dict(stage.full.named_parameters())
        sizes = []
        for width in stage.widths:
            plain = stage.narrow(width)
            assert not plain.training
            assert not any(isinstance(module, SlimmableStage) for module in plain.modules())
            for key, weight in plain.named_parameters():
                assert not weight.requires_grad
                if isinstance(plain.get_submodule(key.rpartition(".")[0]), NORMS):
                    continue
                slices = tuple(slice(0, size) for size in weight.shape)
                torch.testing.assert_close(weight, whole[key][slices].detach(), rtol=0, atol=0)
                assert weight.data_ptr() == whole[key].data_ptr(), key
            sizes.append(sum(weight.numel() for weight in plain.parameters()))
        assert sizes == sorted(sizes, reverse=True)
    widest, narrowest = (network.plain_stages(network.uniform(w)) for w in (1.0, 0.25))
    count = [sum(p.numel() for m in ms for p in m.parameters()) for ms in (widest, narrowest)]
    assert count[1] < 0.6 * count[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_each_stage_exports_with_any_batch_size(name: str) -> None:
    network = settled(name)
    values = borders(network)
    batch = torch.export.Dim("batch", min=1, max=256)
    for stage, example in zip(network.stages(), values, strict=False):
        plain = stage.narrow(stage.widths[-1])  # full width: see the whole network below
        exported = torch.export.export(plain, (example,), dynamic_shapes=({0: batch},))
        called = [node for node in exported.graph.nodes if node.op == "call_function"]
        names = {str(node.target).removeprefix("aten.") for node in called}
        assert {name.removesuffix(".default") for name in names} <= OPERATIONS
        module = exported.module(check_guards=False)
        other = torch.cat([example, example.flip(0)])[:5]
        for x in (other, other[:1]):
            with torch.no_grad():
                torch.testing.assert_close(module(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_network_exports_with_any_batch_size(name: str) -> None:
    network = settled(name)
    shapes = ({0: torch.export.Dim("batch", min=1, max=256)},)
    exported = torch.export.export(network, (network.example(2),), dynamic_shapes=shapes)
    x = network.example(5)
    with torch.no_grad():
        answers = exported.module(check_guards=False)(x)
        torch.testing.assert_close(answers, network(x), rtol=1e-4, atol=1e-5)


def test_widths_keep_their_own_statistics_and_train_the_same_weights() -> None:
    network = build_network("digits_cnn", np.random.default_rng(0)).train()
    stage = network.stages()[1]
    means = [[norm.running_mean.clone() for norm in stage.norms(width)] for width in stage.widths]
    network(network.example(8), network.uniform(0.25)).sum().backward()
    changed = [
        not all(torch.equal(norm.running_mean, mean) for norm, mean in zip(norms, old, strict=True))
        for norms, old in zip(map(stage.norms, stage.widths), means, strict=True)
    ]
    assert changed == [False, True, False]
    for key, weight in stage.full.named_parameters():
        if key.endswith("0.weight"):  # convolutions: the slice that ran has a gradient, no other
            quarter = tuple(
                slice(0, size) for size in dict(stage.narrow(0.25).named_parameters())[key].shape
            )
            assert weight.grad is not None
            assert weight.grad[quarter].abs().sum() > 0
            rest = weight.grad.clone()
            rest[quarter] = 0.0
            assert rest.abs().sum() == 0.0


def test_narrow_follows_the_weights_and_forward_leaves_nothing_behind() -> None:
    network = copy.deepcopy(settled("digits_cnn"))
    stage = network.stages()[0]
    plain = stage.narrow(0.25)
    x = network.example(4)
    before = plain(x)
    with torch.no_grad():
        next(stage.full.parameters()).mul_(1.5)
    assert not torch.allclose(plain(x), before)
    names = set(network.state_dict())
    network.train()
    network(x, network.uniform(0.25))
    copy.deepcopy(network)  # fails where a slice with its graph stayed behind
    assert set(network.state_dict()) == names
    with pytest.raises(RuntimeError, match="channels"):
        network(torch.zeros(2, 5, 8, 8), network.uniform(0.25))
    assert set(network.state_dict()) == names
    copy.deepcopy(network)


def test_weights_depend_on_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first = build_network("digits_cnn", np.random.default_rng(1)).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator moved"
    torch.rand(3)
    again = build_network("digits_cnn", np.random.default_rng(1)).state_dict()
    other = build_network("digits_cnn", np.random.default_rng(2)).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_attention_of_fewer_heads_is_that_of_the_first_heads() -> None:
    """Zeroing the other heads' outputs must do the same as leaving the heads out."""
    stage = settled("fashion_vit").stages()[1]
    full = copy.deepcopy(stage.narrow(1.0).attention)
    narrow = stage.narrow(0.5).attention
    x = torch.randn(2, 49, 128, generator=torch.Generator().manual_seed(0))
    kept = narrow.heads * narrow.head_size
    full.leave.weight.data = full.leave.weight.data.clone()
    full.leave.weight.data[:, kept:] = 0.0
    with torch.no_grad():
        torch.testing.assert_close(narrow(x), full(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda: build_network("fashion_cn", np.random.default_rng(0)), "did you mean 'fashion_cn"),
        (lambda: settled("digits_cnn")(torch.zeros(1, 1, 8, 8), (1.0, 0.25)), "2 widths for the 4"),
        (lambda: settled("digits_cnn").stages()[0].narrow(0.75), r"no width 0.75; this stage has"),
        (lambda: settled("fashion_vit").stages()[-1].narrow(0.5), r"no width 0.5.*\(1.0,\)"),
        (lambda: SlimmableStage(lambda f: nn.Linear(2, 2), (0.5, 1.0)), "expected 1.0 and then"),
        (lambda: SlimmableStage(lambda f: nn.Linear(2, round(4 / f))), "shape .* at most"),
        (lambda: SlimmableStage(lambda f: nn.Linear(2, 2, bias=f < 1.0)), "lacks"),
    ],
)
def test_mistakes_are_named(do: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        do()
