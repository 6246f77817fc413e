from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from runtime.precision import kernels
from runtime.precision.simplify import is_layer
from runtime.precision.staging import StagedNetwork, fingerprint
from tests.runtime.precision import nets


class Whole(nn.Module):
    """A residual net as one module."""

    def __init__(self, around: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.one, self.two = nets.Residual(8, 8), nets.Residual(8, 16, 2)
        self.head = nn.Linear(16, 10)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.one(x)
        y = self.two(y + x if self.around else y)
        return self.head(y.mean((2, 3)) * x.shape[0] / x.shape[0])


SHAPE = (3, 12, 12)


@pytest.mark.parametrize("name", nets.NETS)
def test_stages_compute_what_their_modules_compute(name: str) -> None:
    modules, shape = nets.NETS[name]()
    network = StagedNetwork.from_modules(modules, shape)
    for n in (1, 2, 7):
        x = nets.inputs(shape, n)
        torch.testing.assert_close(network(x), nets.plain(modules, x), rtol=1e-4, atol=1e-5)


def test_a_module_is_cut_behind_its_submodules() -> None:
    module = Whole().eval()
    network = StagedNetwork.from_module(module, ["stem", "one", "two"], SHAPE, last="rest")
    assert network.names == ("stem", "one", "two", "rest")
    assert [stage.output_shape for stage in network.stages] == [
        (8, 12, 12),
        (8, 12, 12),
        (16, 6, 6),
        (10,),
    ]
    x = nets.inputs(SHAPE, 5)
    with torch.no_grad():
        torch.testing.assert_close(network(x), module(x), rtol=1e-4, atol=1e-5)


def test_a_sequential_is_a_chain_of_its_children() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 5), nn.Sequential(nn.ReLU(), nn.Linear(5, 3))).eval()
    network = StagedNetwork.from_sequential(whole, (6,))
    assert network.names == ("0", "1")
    x = nets.inputs((6,), 4)
    with torch.no_grad():
        torch.testing.assert_close(network(x), whole(x))


def test_modules_in_training_are_captured_as_for_inference_and_left_in_training() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    network = StagedNetwork.from_modules([("a", module)], (1, 6, 6))
    assert all(inner.training for inner in module.modules())
    x = nets.inputs((1, 6, 6), 3)
    with torch.no_grad():
        torch.testing.assert_close(network(x), module.eval()(x), rtol=1e-4, atol=1e-5)


def test_normalisation_activation_and_shortcut_go_into_the_convolutions() -> None:
    modules, shape = nets.residual()
    network = StagedNetwork.from_modules(modules, shape)
    calls = [n for n in network.stages[2].graph.graph.nodes if n.op == "call_function"]
    assert [node.target for node in calls] == [kernels.conv] * 3
    assert sum(node.args[3] is not None for node in calls) == 1
    chain, signal = nets.chain()
    power, mel, voice, _ = StagedNetwork.from_modules(chain, signal).stages
    counts = [sum(map(is_layer, s.graph.graph.nodes)) for s in (power, mel, voice)]
    assert counts == [2, 1, 1]
    assert "relu" in voice.graph.code
    assert "batch_norm" not in voice.graph.code


def test_a_fingerprint_is_of_operators_and_weights() -> None:
    prints = []
    for change in (False, False, True):
        modules, shape = nets.narrowable()
        if change:
            with torch.no_grad():
                modules[0][1].first.bias[0] += 1e-3
        prints.append(fingerprint(StagedNetwork.from_modules(modules, shape).stages[0].graph))
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("around", "cuts", "message"),
    [
        (False, ["stem", "on"], r"no submodule 'on' to cut behind.*did you mean 'one'"),
        (True, ["one"], r"cut behind 'one' is crossed by 2 tensors \(relu, relu_2\)"),
        (False, ["one", "stem"], r"cut 'stem' comes before the cut in front of it"),
        (False, ["head"], r"nothing is left behind the last cut 'head'"),
    ],
)
def test_impossible_cuts_are_refused(around: bool, cuts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StagedNetwork.from_module(Whole(around), cuts, SHAPE)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x + 1


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(3, 4)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(0)


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1, keepdim=True)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Two(), r"stage 'a' returns 2 values; a stage returns one tensor"),
        (Fixed(), r"torch.export refuses stage 'a'.*fixes the batch size"),
        (Branch(), r"torch.export refuses stage 'a'.*no branches on values"),
        (Mixing(), r"stage 'a' mixes the samples of a batch"),
        (Counting(), r"stage 'a' changes its buffers when it runs \(seen\)"),
        (Dropping(), r"the batch stays the first dimension"),
        (Integers(), r"stage 'a' hands over torch.int64"),
    ],
)
def test_modules_that_are_no_stage_are_refused(
    module: nn.Module, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=message):
        StagedNetwork.from_modules([("a", module)], (4,))
    assert capfd.readouterr() == ("", "")  # torch.export has pages to say


def test_a_stage_that_does_not_take_what_comes_to_it_is_told_so(
    capfd: pytest.CaptureFixture[str],
) -> None:
    said = r"stage 'b' does not take inputs \[batch, 5\], which are what comes to it: RuntimeError"
    with pytest.raises(ValueError, match=said):
        StagedNetwork.from_modules([("a", nn.Linear(4, 5)), ("b", nn.Linear(4, 2))], (4,))
    assert capfd.readouterr() == ("", "")


def test_names_and_shapes_of_a_chain_are_checked() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        StagedNetwork([])
    with pytest.raises(ValueError, match="stages named twice: a"):
        StagedNetwork.from_modules([("a", nn.ReLU()), ("a", nn.ReLU())], (4,))
    network = StagedNetwork.from_modules([("first", nn.ReLU())], (4,))
    with pytest.raises(ValueError, match=r"no stage 'frist'.*did you mean 'first'"):
        network.index("frist")
    other = StagedNetwork.from_modules([("second", nn.ReLU())], (5,))
    with pytest.raises(ValueError, match=r"'first' hands over \[batch, 4\].*takes \[batch, 5\]"):
        StagedNetwork([*network.stages, *other.stages])


def test_a_narrow_stage_with_another_border_is_refused() -> None:
    class Wrong(nn.Linear):
        def narrow(self, fraction: float) -> nn.Module:
            return nn.Linear(4, int(4 * fraction))

    stage = StagedNetwork.from_modules([("a", Wrong(4, 4))], (4,)).stages[0]
    with pytest.raises(ValueError, match=r"at width 0.5 hands over \[batch, 2\]"):
        stage.narrowed(0.5)
