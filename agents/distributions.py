"""The distribution of actions in several dimensions, computed for all dimensions at once.

Stable-Baselines3 keeps one `Categorical` per dimension. With the seven fields of a plan their many
small operations take longer than the network; one padded table needs a handful of operations.
"""

from __future__ import annotations

import torch
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from torch import Tensor

_NEVER = -1e9  # a log-probability whose exponential is 0 and whose product with 0 is 0


class PaddedMultiCategorical(MultiCategoricalDistribution):
    """Independent categorical distributions of D dimensions, padded to the widest one.

    Probabilities, entropies and modes are those of `MultiCategoricalDistribution`; samples follow
    the same distribution but are drawn from other random numbers.
    """

    def __init__(self, action_dims: list[int]) -> None:
        """Lay out the table.

        Args:
            action_dims: Number of choices of each dimension.
        """
        super().__init__(action_dims)
        widest, total = max(action_dims), sum(action_dims)
        source = torch.full((len(action_dims), widest), total)  # beyond the last: padding
        first = 0
        for row, n in enumerate(action_dims):
            source[row, :n] = torch.arange(first, first + n)
            first += n
        self._source, self._shape = source.reshape(-1), (len(action_dims), widest)

    def proba_distribution(self, action_logits: Tensor) -> PaddedMultiCategorical:
        """Set the preferences, float32 [N, sum(action_dims)]."""
        padding = action_logits.new_full((len(action_logits), 1), _NEVER)
        table = torch.cat([action_logits, padding], dim=1).index_select(1, self._source)
        self._table = table.view(len(action_logits), *self._shape)
        self._log_p = torch.log_softmax(self._table, dim=2)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log-probability float32 [N] of actions [N, D]."""
        return self._log_p.gather(2, actions.long().unsqueeze(2)).sum(dim=(1, 2))

    def entropy(self) -> Tensor:
        """Return the entropy, float32 [N], nats."""
        return -(self._log_p.exp() * self._log_p).sum(dim=(1, 2))

    def sample(self) -> Tensor:
        """Return a random action, int64 [N, D], by the exponential race."""
        race = torch.empty_like(self._log_p).exponential_()
        return (self._log_p.exp() / race).argmax(dim=2)

    def mode(self) -> Tensor:
        """Return the most likely action, int64 [N, D]."""
        return self._table.argmax(dim=2)
