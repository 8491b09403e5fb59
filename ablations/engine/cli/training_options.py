"""Options of how runs are trained, and where."""

import argparse

from ablations.engine.environment.validation import AUTO


def add_training_options(group: "argparse._ArgumentGroup") -> None:
    """Add the options of training and of what it keeps."""
    group.add_argument(
        "--rerun", action="store_true", help="train finished runs again, as new attempts; earlier results stay in MLflow"
    )
    group.add_argument(
        "--data-download", action="store_true", help="download the data set if it is missing (cifar10 and cifar100 only)"
    )
    group.add_argument("--log-models", action="store_true", help="log the final network of each run to MLflow")
    group.add_argument(
        "--predictions",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store which class each run predicts for each test image, about a byte per image (default: yes)",
    )
    group.add_argument(
        "--hang-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="end a process without progress for this time, and retry its run from the last checkpoint (default: 600); one step, "
        "reading the data, or reading or writing a checkpoint is progress",
    )


def add_cluster_options(group: "argparse._ArgumentGroup") -> None:
    """Add the options of a run's resources."""
    group.add_argument("--workers", type=int, default=1, metavar="N", help="data-parallel workers of each run (default: 1)")
    group.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X", help="CPUs of each worker (default: 1)")
    group.add_argument(
        "--gpus-per-worker",
        default=AUTO,
        metavar="X",
        help="GPUs of each worker: 0, 1, or a fraction, with which workers share a GPU; auto: a GPU where the cluster has any "
        "(default: auto)",
    )
    group.add_argument(
        "--placement",
        default="pack",
        metavar="NAME",
        help="pack: workers of a run on few nodes; spread: on many nodes (default: pack)",
    )
    group.add_argument(
        "--max-concurrent", type=int, metavar="N", help="maximum number of runs at a time (default: as many as fit on the cluster)"
    )
