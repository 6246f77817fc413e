from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU its kernels are interpreted; Triton must know before anything imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The first example may compile, and machines are shared: how long one takes says nothing.
settings.register_profile("rheostat", deadline=None)
settings.load_profile("rheostat")


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("RHEOSTAT_DATA")
    if not root:
        pytest.skip("real data: set RHEOSTAT_DATA to the data root to run this test")
    return Path(root)
