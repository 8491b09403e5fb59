"""Precision of convolutions and matrix products, and deterministic algorithms."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from resnet_core.config import RunSpec

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Data type of autocast, by `RunSpec.precision`; other precisions do not use autocast."""


def autocast(spec: RunSpec, device: torch.device) -> torch.autocast:
    """Return the autocast context of `spec.precision`, disabled for `fp32` and `tf32`."""
    return torch.autocast(device.type, AUTOCAST.get(spec.precision), enabled=spec.precision in AUTOCAST)


@contextmanager
def arithmetic(spec: RunSpec) -> Iterator[None]:
    """Set PyTorch's global switches for float32 precision and deterministic algorithms, and restore them afterwards.

    The switches are global to the process and also affect backward passes, so the context spans whole epochs. By default cuDNN
    computes float32 convolutions in TF32, and other code of the process may have allowed TF32 or bfloat16 for matrix products.
    """
    backends: Any = torch.backends  # type stubs lack some of these switches
    on_gpu, on_cpu = backends.cudnn, backends.mkldnn
    convolutions = (on_gpu.conv, on_gpu.rnn)  # set together: reading the legacy switch for both raises an error if they differ
    switches = (*convolutions, backends.cuda.matmul, on_cpu.conv, on_cpu.matmul)
    kept = [switch.fp32_precision for switch in switches]
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = on_gpu.benchmark
    # cuBLAS is deterministic only if `CUBLAS_WORKSPACE_CONFIG` fixes its workspace. PyTorch reads the variable once, before the
    # process's first matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for switch in switches:
        switch.fp32_precision = "ieee"
    legacy = _legacy_switches()
    try:
        _set_legacy_switches(spec.precision == "tf32", "highest")
        for switch in switches:
            switch.fp32_precision = "tf32" if spec.precision == "tf32" and switch in convolutions else "ieee"
        if spec.deterministic:
            torch.use_deterministic_algorithms(True)
            on_gpu.benchmark = False  # benchmarking picks the currently fastest algorithm
        yield
    finally:
        _set_legacy_switches(*legacy)
        for switch, precision in zip(switches, kept, strict=True):
            switch.fp32_precision = precision
        if spec.deterministic:  # otherwise nothing changed, and the call would import PyTorch's compiler, 3 s of CPU time
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        on_gpu.benchmark = benchmark


def _legacy_switches() -> tuple[bool, str]:
    """Return the legacy switches: cuDNN's `allow_tf32` and the precision of matrix products.

    All `fp32_precision` must be "ieee". PyTorch stores the legacy switches separately, and reading one that contradicts
    `fp32_precision` raises an error. `torch.compile` reads them.
    """
    try:
        allowed = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        allowed = True
    return allowed, torch.get_float32_matmul_precision()


def _set_legacy_switches(allow_tf32: bool, products: str) -> None:
    torch.backends.cudnn.allow_tf32 = allow_tf32
    torch.set_float32_matmul_precision(products)
