"""Peak memory of an epoch."""

import platform
import resource
from pathlib import Path

import torch


class PeakMemory:
    """Peak memory since construction: memory that PyTorch reserves on a GPU, or resident memory of this process on a CPU.

    Args:
        device: device that the training runs on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif platform.system() == "Linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, since processes are reused for several runs
            except OSError:
                return  # a hardened container: the peak is then that of the whole process

    def read_mb(self) -> float:
        """Return the peak memory so far, in MiB."""
        if self.device.type == "cuda":
            # Reserved, not allocated: replayed graphs allocate nothing, but their memory is reserved.
            return torch.cuda.max_memory_reserved(self.device) / 2**20
        if platform.system() == "Linux":
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
