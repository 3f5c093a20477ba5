"""Runs networks in ONNX Runtime, which computes convolutions and recurrences on a CPU faster than torch.

A network is exported each time it is loaded, so that its parameters have one source. That takes a second or two.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn


def for_cpu(network: nn.Module, example: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Export `network` to a function that runs it in ONNX Runtime.

    `network` takes a tensor of the shape of `example`, with a last axis of any length, and returns a tuple of tensors.
    The function returns the same. Threads may share it. It computes with the number of threads that torch has now.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # log errors only
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            # torch warns that this exporter is the older one; the newer one needs another package. It also warns about
            # lengths that become constants.
            warnings.simplefilter("ignore")
            axes = {"input": {example.ndim - 1: "length"}}
            torch.onnx.export(network.eval(), (example,), file, dynamo=False, input_names=["input"], dynamic_axes=axes)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def compute(values: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in session.run(None, {"input": values.numpy()}))

    return compute
