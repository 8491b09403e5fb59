"""Shares of a GPU for small runs, where sharing was measured to pay: several processes on one GPU under NVIDIA's MPS.

`benchmarks/gpu` has the measurement. Without MPS, processes take turns on a GPU, and all together train no faster than one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ablations.engine.cluster.doctor import gpus
from ablations.engine.scheduling.gpu_choice import ClusterResources, ResourceChoice
from ablations.engine.study.plan import Run
from ablations.engine.submission.planning.cost_and_power import step_settings
from ablations.engine.task.workload import Workload
from ablations.engine.tracking.run_queries import CompletedRun

MAX_RUNS_PER_GPU = 8
"""Maximum number of runs that share a GPU: the largest number that was measured to pay."""
MEMORY_FACTOR = 1.5
"""Memory that a run gets, as a multiple of what an equal run reserved at its peak."""
CONTEXT_MB = 600.0
"""Memory that CUDA itself takes for each process, in MiB: an upper bound."""
RAY_STEPS_PER_GPU = 10_000
"""Ray counts resources in ten-thousandths."""


def with_share(
    choice: ResourceChoice, there: ClusterResources, runs: int, peak_memory_mb: Callable[[], float | None]
) -> ResourceChoice:
    """Return a choice of one GPU with a share of it instead, if several runs at a time on a GPU pay.

    They pay on a single machine under MPS, whose GPUs are fewer than the runs, for runs with one worker whose memory was measured.
    Whether MPS runs on other nodes of a cluster is not known here.

    Args:
        choice: resources of a run, with one GPU that was not requested.
        there: the cluster.
        runs: number of runs that could train at the same time.
        peak_memory_mb: returns the peak memory of the largest run, in MiB; None if it was not measured.
    """
    needs, counted = choice.resources, int(there.nodes[0].get("GPU", 0)) if there.nodes else 0
    if needs.workers > 1 or len(there.nodes) > 1 or there.has_autoscaler or runs <= counted or not counted or not gpus.has_mps():
        return choice
    # With more shares than runs or CPUs, Ray would place all runs on some of the GPUs and leave the others idle.
    held_by_cpus = replace(needs, gpus_per_worker=0).runs_on(there.nodes[0])
    most = min(MAX_RUNS_PER_GPU, math.ceil(runs / counted), held_by_cpus // counted)
    if most < 2:
        return choice
    peak, total = peak_memory_mb(), gpus.smallest_memory_mb()
    if peak is None or total is None:
        unknown = "no such run has finished on a GPU" if peak is None else "nvidia-smi does not report the GPU's memory"
        return replace(choice, reason=f"{choice.reason}, whole since {unknown}")
    sharing = min(most, int(total / (MEMORY_FACTOR * peak + CONTEXT_MB)))
    if sharing < 2:
        return replace(choice, reason=f"{choice.reason}, whole since a finished run took {peak:,.0f} of {total:,.0f} MiB")
    share = RAY_STEPS_PER_GPU // sharing / RAY_STEPS_PER_GPU
    reason = f"{choice.reason}, shared by {sharing} runs under MPS, since a finished run took {peak:,.0f} of {total:,.0f} MiB"
    return replace(choice, resources=replace(needs, gpus_per_worker=share), reason=reason)


def peak_memory_mb(workload: Workload, runs: Sequence[Run], finished: Iterable[CompletedRun]) -> float | None:
    """Return the peak GPU memory of the largest of some runs, in MiB, from finished runs with the same network and settings.

    None if such a run is missing for one of them, or did not record its memory.
    """
    settings_of, known = step_settings(workload), dict[tuple[str, ...], float]()
    for past in finished:
        if past.on_gpu and past.peak_memory_mb:
            settings = settings_of(past.spec)
            known[settings] = max(known.get(settings, 0.0), past.peak_memory_mb)
    wanted = {settings_of(run.spec.flat()) for run in runs}
    return max(known[each] for each in wanted) if wanted and wanted <= known.keys() else None
