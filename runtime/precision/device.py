"""The GPU that levels for it run on."""

from __future__ import annotations

import torch

CUDA = torch.device("cuda")
"""The current one. Tests put the processor in its place, on which Triton only interprets."""
