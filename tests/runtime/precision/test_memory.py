from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from runtime.precision.memory import keep_memory

kept = keep_memory() if sys.argv[1] == "keep" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.zeros(4, 1024, 1024)  # 16 MB, freed at once
before = faults()
for _ in range(10):
    torch.zeros(4, 1024, 1024)
print(kept, faults() - before)
"""


def _run(mode: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    # Ten times 16 MB are 40,960 pages of 4 KiB, or 80 huge ones.
    kept, faults = _run("keep")
    assert kept == "True"
    assert int(faults) < 40
    assert int(_run("leave")[1]) >= 80
