from __future__ import annotations

import pytest
import torch

from experiments.precision.banks import SampleRows, inputs


@pytest.mark.parametrize("shape", [(6, 3, 8, 9), (6, 1, 50), (6, 7)])
def test_rows_are_taken_as_banks_want_them(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    place = torch.tensor([4, 0, 4])
    for kept in (x, inputs(x)):
        rows = SampleRows(kept).take(place)
        assert torch.equal(rows, x[place])
        assert rows.stride() == inputs(x[place]).stride()
