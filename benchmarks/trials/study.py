"""A study whose runs only sleep and report: what is left is what Ray Tune, this engine and MLflow cost."""

import time
from collections.abc import Generator
from typing import Any
from unittest import mock

from ablations import Study, main
from ablations.engine.scheduling import tune_runner
from ablations.engine.trial.job import Report
from ablations.engine.trial.trainable import RunTrainable

SECONDS = 1.0
EPOCHS = 2
STUDY = Study(
    name="asleep",
    question="What does it cost to lead?",
    factors={"shortcut": ("none", "A", "B", "C"), "lr": tuple(round(0.01 * i, 2) for i in range(1, 26))},
    baseline={"shortcut": "A", "lr": 0.01},
    preset="smoke",
)


class Sleeper(RunTrainable):
    """In place of a training: its reports, and a second."""

    def setup(self, config: dict[str, Any], workload: bytes = b"") -> None:
        self._reports = sleep()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._reports = sleep()
        return True


def sleep() -> Generator[Report, None, None]:
    """Yield the reports of a run that does nothing."""
    for epoch in range(1, EPOCHS + 1):
        time.sleep(SECONDS / EPOCHS)
        metrics = {f"{part}/{name}": 10.0 for part in ("train", "test") for name in ("loss", "error")}
        metrics |= {"lr": 0.1, "images_per_second": 1000.0, "epoch_seconds": SECONDS / EPOCHS, "peak_memory_mb": 200.0}
        if epoch == EPOCHS:
            metrics |= {"parameters": 1000.0, "flops": 1000.0, "train_seconds": SECONDS}
        conditions = {"device": "none", "torch": "none", "python": "none", "threads": "1"}
        yield {"epoch": epoch, "metrics": metrics, "probes": [], "conditions": conditions}
    yield {"outcome": "completed"}


if __name__ == "__main__":
    mock.patch.object(tune_runner, "RunTrainable", Sleeper).start()
    main(STUDY)
