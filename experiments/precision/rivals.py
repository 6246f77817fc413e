"""The whole network in fp32, compiled, and in OpenVINO: what a bank is measured beside.

A bank on a GPU is measured beside the network on the same GPU, in fp32 and fp16.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from experiments.console import say
from runtime.precision.measure import Call

EAGER, COMPILED, COMPILED_FP16 = "fp32 eager", "fp32 compiled", "fp16 compiled"
OPENVINO = "openvino int8"
_CALIBRATION = 300
"""Samples that OpenVINO's ranges are found on: the default of its quantiser."""


def rival_calls(plain: nn.Module, batch: Tensor, data: Tensor) -> dict[str, Call]:
    """Return what can be run here beside a bank, by name.

    Args:
        plain: The network in fp32, in evaluation mode.
        batch: float32 [n, ...], the batch size that it is prepared for.
        data: float32 [m, ...], calibration samples.

    Returns:
        Eager and compiled fp32, and OpenVINO's int8 where it is installed (`pip install -e
        '.[openvino]'`); what cannot be made on this machine is left out, and said.
    """
    found: dict[str, Call | None] = {
        EAGER: plain.to(memory_format=torch.channels_last),
        COMPILED: compiled(plain, batch),
        OPENVINO: openvino_int8(plain, batch, data),
    }
    return {name: call for name, call in found.items() if call is not None}


def gpu_rival_calls(plain: nn.Module, batch: Tensor) -> dict[str, Call]:
    """Return what can be run on a GPU beside a bank, by name; inputs and results as a bank's.

    Args:
        plain: The network in fp32, in evaluation mode.
        batch: float32 [n, ...], the batch size that it is prepared for.

    Returns:
        Eager and compiled fp32 as PyTorch comes (convolutions round to TF32), and compiled fp16:
        both with CUDA graphs.
    """
    found: dict[str, Call | None] = {}
    floats = {EAGER: torch.float32, COMPILED: torch.float32, COMPILED_FP16: torch.float16}
    for name, dtype in floats.items():
        own = deepcopy(plain).to("cuda", dtype, memory_format=torch.channels_last)
        found[name] = _there_and_back(own) if name == EAGER else _compiled_on_gpu(own, batch, name)
    return {name: call for name, call in found.items() if call is not None}


def _there_and_back(module: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Call:
    def call(x: Tensor) -> Tensor:
        return module(x.to("cuda", non_blocking=True).to(dtype)).float().cpu()

    return call


def _compiled_on_gpu(module: nn.Module, batch: Tensor, name: str) -> Call | None:
    """Return a module compiled with CUDA graphs; None where it cannot be."""
    dtype = next(module.parameters()).dtype
    try:
        call = _there_and_back(torch.compile(module, dynamic=False, mode="reduce-overhead"), dtype)
        for _ in range(3):  # the graph is captured in the second
            call(batch)
    except Exception as error:  # whatever a compiler raises
        _said(name, error)
        return None
    return call


def _said(what: str, error: Exception) -> None:
    say(f"{what} could not be made here ({type(error).__name__}); it is left out")


def compiled(plain: nn.Module, batch: Tensor) -> Call | None:
    """Return the network compiled for a batch size, weights frozen; None without a C++ compiler."""
    import torch._inductor.config as inductor

    before = inductor.freezing
    inductor.freezing = True
    try:
        call: Call = torch.compile(plain, dynamic=False, isolate_recompiles=True)
        call(batch)
        call(batch)
    except Exception as error:  # whatever a compiler raises on a machine without one
        _said(COMPILED, error)
        return None
    finally:
        inductor.freezing = before
    return call


def openvino_int8(plain: nn.Module, batch: Tensor, data: Tensor) -> Call | None:
    """Return the whole network quantised by OpenVINO, on one thread; None where it cannot be made.

    Post-training quantisation with its defaults: int8 convolutions and matrix products, ranges
    from calibration samples, the rest in fp32. One stream and one thread, as the bank.

    Args:
        plain: The network in fp32, in evaluation mode.
        batch: float32 [n, ...], the batch size that it is compiled for.
        data: float32 [m, ...], calibration samples.
    """
    if find_spec("openvino") is None or find_spec("nncf") is None:
        return None
    try:
        request = _openvino_request(plain, batch, data)
    except Exception as error:  # whatever it raises on an operator that it does not know
        _said(OPENVINO, error)
        return None

    def call(x: Tensor) -> Tensor:
        found = request.infer(x.numpy(), share_inputs=True, share_outputs=False)
        return torch.from_numpy(found[0])

    call(batch)
    return call


def _openvino_request(plain: nn.Module, batch: Tensor, data: Tensor) -> Any:
    import nncf
    import openvino

    # Its progress bars and remarks would break into ours.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    shape = openvino.PartialShape(list(batch.shape))
    parts = torch.split(data[:_CALIBRATION], len(batch))
    samples = [part.numpy() for part in parts if len(part) == len(batch)]
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        model = openvino.convert_model(plain, example_input=batch, input=[shape])
        quantised = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        ready = openvino.Core().compile_model(quantised, "CPU", settings)
    return ready.create_infer_request()
