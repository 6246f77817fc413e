"""Training of slimmable networks: full width and narrower ones together.

Each step runs the sandwich rule (Yu & Huang, arXiv:1903.05134): the full network, the narrowest
one, and one in between: half of the time each stage's width is drawn by itself, so that every mix
works, and half of the time all stages have the same. The narrower ones learn from the full one's
answers. Every epoch is a function of (seed, epoch) and of the state
before it: training that was interrupted goes on to the identical result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from experiments.precision.augment import Augmentation
from experiments.precision.data import Part
from runtime.precision.networks import build_network
from runtime.precision.slimmable import NORMS, SlimmableNetwork

Told = Callable[[int, int], None]
"""Told how many steps of an epoch are done, and how many there are."""

_WEIGHTS, _EPOCH, _NORMS = range(3)  # what the parts of the seed are for
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each parameter
_EVALUATION_BATCH = 250
_NORM_BATCHES = 8


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training part.
        batch: Samples per step.
        learning_rate: Peak of AdamW's rate; a linear start, then a half cosine to zero.
        warm_up: Share of the steps that the linear start takes.
        weight_decay: Of weights; not of normalisations and biases.
        smoothing: Label smoothing.
        distil: Weight of the full network's answers, against that of the labels, in what the
            narrower ones learn from.
        augment: Variation of the training samples.
        threads: Of PyTorch; the order of its sums, hence the weights, depends on it.
    """

    epochs: int
    batch: int = 128
    learning_rate: float = 2e-3
    warm_up: float = 0.1
    weight_decay: float = 0.05
    smoothing: float = 0.0
    distil: float = 0.5
    augment: Augmentation = field(default_factory=Augmentation)
    threads: int = 1

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: Nothing to do, or a share outside [0, 1).
        """
        if min(self.epochs, self.batch, self.threads) < 1 or self.learning_rate <= 0.0:
            raise ValueError(
                "epochs, batch, threads and learning_rate are "
                f"{self.epochs}, {self.batch}, {self.threads} and {self.learning_rate}; expected "
                "at least 1, and a rate above 0"
            )
        for name in ("warm_up", "smoothing", "distil"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 to 1")


class Trainer:
    """A network in training.

    Attributes:
        network: What is trained.
        optimiser: AdamW over it.
        epoch: Epochs done.
    """

    def __init__(self, name: str, recipe: Recipe, data: Part, seed: int) -> None:
        """Build a network with random weights.

        Args:
            name: One of `networks.NETWORKS`.
            recipe: How to train it.
            data: The training part.
            seed: What all randomness depends on.
        """
        self.recipe, self.data, self.seed = recipe, data, seed
        network = build_network(name, np.random.default_rng([seed, _WEIGHTS]))
        self.network = network.to(memory_format=torch.channels_last)
        self.epoch = 0
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        kept = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)

    @property
    def steps(self) -> int:
        """Steps in an epoch; samples that fill no batch wait for another epoch."""
        return max(1, len(self.data) // self.recipe.batch)

    def run_epoch(self, told: Told = lambda done, total: None) -> float:
        """Train for one epoch.

        Args:
            told: Called after every step.

        Returns:
            The full network's mean cross-entropy over the epoch.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        rng = np.random.default_rng([self.seed, _EPOCH, self.epoch])
        order = rng.permutation(len(self.data))
        self.network.train()
        total = 0.0
        for step in range(self.steps):
            chosen = order[step * self.recipe.batch : (step + 1) * self.recipe.batch]
            x = to_tensor(self.recipe.augment(self.data.x[chosen], rng))
            mix = middle_widths(self.network, rng)
            rate = learning_rate(self.recipe, self.epoch * self.steps + step, self.steps)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            total += self._step(x, torch.from_numpy(self.data.y[chosen]), mix)
            told(step + 1, self.steps)
        self.epoch += 1
        return total / self.steps

    def _step(self, x: Tensor, y: Tensor, mix: Sequence[float]) -> float:
        self.optimiser.zero_grad()
        logits = self.network(x)
        loss = functional.cross_entropy(logits, y, label_smoothing=self.recipe.smoothing)
        loss.backward()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {float(loss.detach())} in epoch {self.epoch}; lower "
                "network.learning_rate"
            )
        teacher = logits.detach().softmax(1)
        for widths in (self.network.uniform(min(self.network.widths)), mix):
            narrow = self.network(x, widths)
            distilled = functional.cross_entropy(narrow, teacher)
            labelled = functional.cross_entropy(narrow, y)
            share = self.recipe.distil
            (share * distilled + (1.0 - share) * labelled).backward()
        self.optimiser.step()
        return float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """Return everything that going on depends on, besides the epoch."""
        network = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        moments = {
            f"optimiser.{k}.{name}": tensor
            for k, parameter in enumerate(self._parameters())
            for name, tensor in self.optimiser.state.get(parameter, {}).items()
        }
        return network | moments

    def restore(self, state: dict[str, Tensor], epoch: int) -> None:
        """Go back to a state that `state` returned.

        Raises:
            RuntimeError: It is that of another network.
        """
        network = {
            name.removeprefix("network."): tensor
            for name, tensor in state.items()
            if name.startswith("network.")
        }
        self.network.load_state_dict(network)
        for k, parameter in enumerate(self._parameters()):
            # A width that has not been drawn yet has no moments.
            names = [name for name in _MOMENTS if f"optimiser.{k}.{name}" in state]
            for name in names:
                saved = state[f"optimiser.{k}.{name}"]
                # Laid out in memory as the parameter is, which the file does not remember.
                like = saved if name == "step" else parameter
                moment = torch.empty_like(like, requires_grad=False).copy_(saved)
                self.optimiser.state[parameter][name] = moment
        self.epoch = epoch

    def _parameters(self) -> Iterator[Tensor]:
        for group in self.optimiser.param_groups:
            yield from group["params"]


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Return the rate of a step (counted from 0 over all epochs)."""
    total = recipe.epochs * steps_per_epoch
    start = recipe.warm_up * total
    if step < start:
        return recipe.learning_rate * (step + 1) / (start + 1)
    progress = (step - start) / max(1.0, total - start)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def random_widths(network: SlimmableNetwork, rng: np.random.Generator) -> tuple[float, ...]:
    """Draw a width for every stage."""
    return tuple(stage.widths[rng.integers(len(stage.widths))] for stage in network.stages())


def middle_widths(network: SlimmableNetwork, rng: np.random.Generator) -> tuple[float, ...]:
    """Draw what is trained between full and narrowest: a mix of widths, or one of the middle."""
    mix = random_widths(network, rng)
    middle = network.widths[1:-1]
    if not middle or rng.random() < 0.5:
        return mix
    return network.uniform(middle[rng.integers(len(middle))])


def to_tensor(x: np.ndarray) -> Tensor:
    """Return samples as a tensor, images with their channels last in memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(x))
    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def recalibrate(network: SlimmableNetwork, data: Part, seed: int) -> None:
    """Measure anew the statistics of every width's normalisations.

    What a stage gets depends on the widths before it. For each width, batches run with all stages
    at that width, and as many with widths drawn at random; a normalisation keeps the mean of the
    batches that it took part in.

    Args:
        network: Changed in place; left in evaluation mode.
        data: The training part.
        seed: What the choice of samples depends on.
    """
    rng = np.random.default_rng([seed, _NORMS])
    norms = [m for m in network.modules() if isinstance(m, NORMS)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    network.train()
    with torch.no_grad():
        for width in network.widths:
            for _ in range(_NORM_BATCHES):
                for widths in (network.uniform(width), random_widths(network, rng)):
                    chosen = rng.choice(len(data), min(_EVALUATION_BATCH, len(data)), False)
                    network(to_tensor(data.x[chosen]), widths)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    network.eval()


def accuracy(network: SlimmableNetwork, data: Part, widths: Sequence[float]) -> float:
    """Return the share of samples that a network at some widths classifies correctly."""
    network.eval()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(data), _EVALUATION_BATCH):
            piece = slice(start, start + _EVALUATION_BATCH)
            answers = network(to_tensor(data.x[piece]), widths).argmax(1).numpy()
            correct += int((answers == data.y[piece]).sum())
    return correct / len(data)


def multiplications(network: nn.Module, *given: object) -> int:
    """Return multiply-accumulate operations of a call, in convolutions and matrix products."""
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*given)
    return int(counter.get_total_flops()) // 2
