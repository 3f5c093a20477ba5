"""Networks through ONNX Runtime, which computes convolutions and recurrences on a CPU in less time than torch.

A network is exported when it is loaded, so that its parameters have one source; that takes a second or two.
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
    """`network`, which gives a tuple of tensors for inputs of the shape of `example`, whose last axis may have any
    length, as a function that gives the same. Threads may share it. It computes with as many threads as torch does now.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        with warnings.catch_warnings(), torch.no_grad():
            # Of its older exporter, which needs no further package, and of lengths that are not part of the graph.
            warnings.simplefilter("ignore")
            axes = {"input": {example.ndim - 1: "length"}}
            torch.onnx.export(network.eval(), (example,), file, dynamo=False, input_names=["input"], dynamic_axes=axes)
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def compute(values: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(output) for output in session.run(None, {"input": values.numpy()}))

    return compute
