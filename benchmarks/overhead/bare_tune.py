"""The runs as a bare Tune function, two at a time: `python -m benchmarks.overhead.bare_tune RUNS EPOCHS CACHE`."""

import os
import sys
from typing import Any

# As the engine does: no result files per trial. The bare variant is to be as lean as can be.
os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"

import ray
from ray import tune

from benchmarks.overhead.plain import train


def trainable(config: dict[str, Any]) -> None:
    """One trial."""
    train(config["seed"], config["epochs"], config["cache"], tune.report)


def main(runs: int, epochs: int, cache: str) -> None:
    """Runs all trials; raises if one failed."""
    ray.init(log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(range(runs))), "epochs": epochs, "cache": cache},
        tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=2),
        run_config=tune.RunConfig(storage_path=os.environ["RESNET_ABLATIONS_HOME"], verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
