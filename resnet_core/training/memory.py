"""Peak memory of one epoch."""

import platform
import resource
from pathlib import Path

import torch


class PeakMemory:
    """Measures from its creation: reserved bytes of a GPU, which nobody else can have, resident bytes of this process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif platform.system() == "Linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: processes are reused from run to run
            except OSError:
                return  # a hardened container; the peak is then that of the process

    def read_mb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) / 2**20  # a replayed graph allocates nothing: its memory is reserved
        if platform.system() == "Linux":
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
