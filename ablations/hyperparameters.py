"""Which hyperparameters suit a network, and is a variant better, or did it just get the better ones?

ray job submit -- python ablations/hyperparameters.py --per-cell shortcut --space lr --set depth=56 --trials 9 --scheduler none

Cost: with --seeds 5 on digits, 36 trials and 40 runs: 15 minutes on 2 CPU cores.
Expect: the ranking survives: with a learning rate of its own the plain network still fails, and A, B and C hardly gain.
"""

from typing import Any

from ablations import Study, main


def space(trial: Any) -> None:
    """Suggest the hyperparameters of a trial (an `optuna.Trial`). Names are fields of `RunSpec`; `--space` restricts them."""
    trial.suggest_float("optim.lr", 1e-3, 1, log=True)
    trial.suggest_float("optim.weight_decay", 1e-6, 1e-2, log=True)
    trial.suggest_float("optim.momentum", 0.8, 0.99)
    trial.suggest_categorical("optim.global_batch_size", (32, 64, 128, 256))
    trial.suggest_int("optim.warmup_steps", 0, 100, step=20)
    trial.suggest_float("optim.label_smoothing", 0, 0.2)
    if trial.suggest_categorical("optim.schedule", ("step", "cosine", "constant")) == "step":
        trial.suggest_categorical("optim.milestones", ("0.5,0.75", "0.3,0.6,0.8"))


STUDY = Study(
    name="hyperparameters",
    question="Which hyperparameters suit a residual network, and does each variant need its own?",
    factors={"shortcut": ("none", "A", "B", "C")},
    baseline={"shortcut": "A"},
    space=space,
)

if __name__ == "__main__":
    main(STUDY)
