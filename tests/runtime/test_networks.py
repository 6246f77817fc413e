from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.networks import Network, Preferred, RecurrentNetwork, network_from, recurrent_from

IN, UNITS, OUT = 5, 4, 3


def _recurrent(lstm: torch.nn.LSTM, head: torch.nn.Linear) -> RecurrentNetwork:
    weight_ih, weight_hh, bias_ih, bias_hh, weight, bias = (
        p.detach().numpy() for p in (*lstm.parameters(), *head.parameters())
    )
    return RecurrentNetwork(weight_ih, weight_hh, bias_ih + bias_hh, Network(((weight, bias),)))


def test_memory_is_torch_s_over_a_sequence() -> None:
    torch.manual_seed(0)
    lstm, head = torch.nn.LSTM(IN, UNITS), torch.nn.Linear(UNITS, OUT)
    sequence = 3.0 * torch.randn(20, 2, IN)
    with torch.no_grad():
        expected = head(lstm(sequence)[0]).numpy()
    network = _recurrent(lstm, head)
    network.check(IN, OUT)
    state = network.start(2)
    for k, observation in enumerate(sequence.numpy()):
        preferences, state = network.advance(observation, state)
        np.testing.assert_allclose(preferences, expected[k], rtol=1e-5, atol=1e-6)
    again = recurrent_from(network.tensors())
    fresh, _ = again.advance(sequence[0].numpy(), again.start(2))
    np.testing.assert_allclose(fresh, expected[0], rtol=1e-5, atol=1e-6)


def test_gates_far_out_do_not_overflow() -> None:
    ones = np.ones((4 * UNITS, IN), dtype=np.float32)
    state_weight = np.zeros((4 * UNITS, UNITS), dtype=np.float32)
    head = Network(((np.ones((1, UNITS), np.float32), np.zeros(1, np.float32)),))
    network = RecurrentNetwork(ones, state_weight, np.zeros(4 * UNITS, np.float32), head)
    with np.errstate(all="raise", under="ignore"):
        for sign in (-1e4, 1e4):
            seen = np.full((1, IN), sign, dtype=np.float32)
            assert np.isfinite(network.advance(seen, network.start(1))[0]).all()


@pytest.mark.parametrize(("name", "layer"), [("tanh", torch.nn.Tanh()), ("relu", torch.nn.ReLU())])
def test_perceptron_is_torch_s(name: str, layer: torch.nn.Module) -> None:
    torch.manual_seed(1)
    first, last = torch.nn.Linear(IN, UNITS), torch.nn.Linear(UNITS, OUT)
    x = torch.randn(7, IN)
    with torch.no_grad():
        expected = last(layer(first(x))).numpy()
    arrays = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in (first, last)]
    network = network_from(Network(tuple(arrays)).tensors(), name)
    np.testing.assert_allclose(network(x.numpy()), expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    torch.manual_seed(0)
    network = _recurrent(torch.nn.LSTM(IN, UNITS), torch.nn.Linear(UNITS, OUT))
    with pytest.raises(ValueError, match=r"lstm input_weight has shape \(16, 5\)"):
        network.check(IN + 1, OUT)
    with pytest.raises(ValueError, match="has 3 outputs; its actions need 4"):
        network.check(IN, OUT + 1)
    broken = RecurrentNetwork(
        network.input_weight, np.full_like(network.state_weight, np.nan), network.bias, network.head
    )
    with pytest.raises(ValueError, match=r"lstm state_weight .* all finite"):
        broken.check(IN, OUT)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        Network(network.head.layers, "gelu")


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 2**32 - 1))
def test_the_choice_is_the_argmax_of_every_dimension(nvec: list[int], seed: int) -> None:
    preferences = np.random.default_rng(seed).normal(size=(4, sum(nvec))).astype(np.float32)
    parts = np.split(preferences, np.cumsum(nvec)[:-1], axis=1)
    expected = np.stack([part.argmax(axis=1) for part in parts], axis=1)
    preferred = Preferred(nvec)
    np.testing.assert_array_equal(preferred.rows(preferences), expected)
    np.testing.assert_array_equal([preferred.one(row) for row in preferences], expected)
