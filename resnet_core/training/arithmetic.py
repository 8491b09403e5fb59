"""The arithmetic of a training: how convolutions and matrix products are computed, and whether they repeat to the bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from resnet_core.config import RunSpec

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(spec: RunSpec, device: torch.device) -> torch.autocast:
    """Return the context in which a network computes in the spec's precision."""
    return torch.autocast(device.type, AUTOCAST.get(spec.precision), enabled=spec.precision in AUTOCAST)


@contextmanager
def arithmetic(spec: RunSpec) -> Iterator[None]:
    """Set PyTorch's switches for float32 and for deterministic algorithms, and restore them afterwards.

    The switches belong to the process, and backward passes read them too, so they hold for whole epochs. Left alone, cuDNN
    convolves float32 in TF32, and other code of the process may have allowed TF32 or bfloat16 for matrix products.
    """
    backends: Any = torch.backends  # its types do not know all of these switches
    on_gpu, on_cpu = backends.cudnn, backends.mkldnn
    convolutions = (on_gpu.conv, on_gpu.rnn)  # together: the old switch for both raises an error once they differ
    switches = (*convolutions, backends.cuda.matmul, on_cpu.conv, on_cpu.matmul)
    kept = [switch.fp32_precision for switch in switches]
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = on_gpu.benchmark
    # cuBLAS is deterministic only if `CUBLAS_WORKSPACE_CONFIG` fixes its workspace. PyTorch reads the variable once, before the
    # process's first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for switch in switches:
        switch.fp32_precision = "ieee"
    old = _old_switches()
    try:
        _set_old_switches(spec.precision == "tf32", "highest")
        for switch in switches:
            switch.fp32_precision = "tf32" if spec.precision == "tf32" and switch in convolutions else "ieee"
        if spec.deterministic:
            torch.use_deterministic_algorithms(True)
            on_gpu.benchmark = False  # it takes the algorithm that is fastest at the moment
        yield
    finally:
        _set_old_switches(*old)
        for switch, precision in zip(switches, kept, strict=True):
            switch.fp32_precision = precision
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        on_gpu.benchmark = benchmark


def _old_switches() -> tuple[bool, str]:
    """Return cuDNN's `allow_tf32` and the precision of matrix products as they were set, while all `fp32_precision` are "ieee".

    PyTorch keeps both beside `fp32_precision`, and reading one that contradicts it raises an error: `torch.compile` reads them.
    """
    try:
        allowed = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        allowed = True
    return allowed, torch.get_float32_matmul_precision()


def _set_old_switches(allow_tf32: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.set_float32_matmul_precision(products)
