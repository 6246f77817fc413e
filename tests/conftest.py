from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = os.environ.get("RHEOSTAT_DATA")
    if not root:
        pytest.skip("real data: set RHEOSTAT_DATA to the data root to run this test")
    return Path(root)
