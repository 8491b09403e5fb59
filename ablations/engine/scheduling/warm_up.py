"""Processes that import a training's modules before Ray Tune asks for a process: while this one opens MLflow and imports Tune."""

ENVIRONMENT = {"PL_DISABLE_FORK": "1"}
"""Environment variables that Tune sets for its trials. Ray gives a trial an idle process of the same job and the same variables; if
Tune sets others, the processes here only end unused."""


def import_training() -> None:
    """Import what a trial imports."""
    import torch  # noqa: F401
    from ray import tune  # noqa: F401

    from ablations.engine.task import image_classification  # noqa: F401
    from ablations.engine.trial import trainable  # noqa: F401


def start_processes(count: int) -> None:
    """Start processes on this machine that import a training's modules and then wait for a trial; do not wait for them.

    Nothing depends on them: an error in one of them is not reported, and they end with this process's job.
    """
    import ray

    task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": ENVIRONMENT})(import_training)
    for _ in range(count):
        task.remote()
