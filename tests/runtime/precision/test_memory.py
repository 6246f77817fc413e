from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from runtime.precision.memory import keep_memory

torch.set_num_threads(1)
kept = keep_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    torch.zeros(4, 1024, 1024)  # 16 MB, freed at once
before = faults()
for _ in range(10):
    torch.zeros(4, 1024, 1024)
print(kept, faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    assert kept == "True"
    # Ten times 16 MB anew would be 40,960 pages of 4 KiB, or 80 huge ones.
    assert int(faults) < 40
