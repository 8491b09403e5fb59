"""Configuration of the optimizer, its learning-rate schedule and changes during a training."""

import re
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, Self

from resnet_core.fields import Checked, ConfigError, reject

CHANGEABLE = ("lr", "weight_decay", "momentum", "label_smoothing")
"""Fields of `OptimConfig` that may change during a training."""
_CHANGE = re.compile(rf"([1-9][0-9]{{0,9}}):({'|'.join(CHANGEABLE)})=(\S+)")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Checked):
    """SGD with momentum or AdamW, and a learning-rate schedule that is a pure function of the step."""

    _section = "optim."

    epochs: int = 10
    """Passes over the training set. Ignored if `iterations` is set; an override of `epochs` alone clears `iterations`.

    Unit: epochs.
    Accepted: 1 to 1,000,000,000.
    """
    iterations: int | None = None
    """Length of the whole training in steps. The last epoch may be partial. None: `epochs` decides.

    Unit: steps.
    Accepted: 1 to 1,000,000,000.
    Source: section 4.2 (64,000).
    """
    global_batch_size: int = 128
    """Number of images per step over all workers; each worker takes an equal share.

    Unit: images.
    Accepted: 1 to 1,000,000,000, a multiple of `world_size`, at most the number of training images.
    Source: section 4.2 (128); section 3.4 (256).
    """
    lr: float = 0.1
    """Peak learning rate.

    Unit: none.
    Accepted: at least 0.
    Source: section 4.2.
    """
    algorithm: Literal["sgd", "adamw"] = "sgd"
    """Optimizer. `sgd`: SGD with momentum. `adamw`: Adam with decoupled weight decay, by `betas` instead of `momentum`.

    Source: section 3.4 (`sgd`); Loshchilov and Hutter 2019, arXiv:1711.05101 (`adamw`).
    """
    betas: tuple[float, ...] = (0.9, 0.999)
    """Decay rates of AdamW's averages of the gradient and of its square.

    Unit: fraction.
    Accepted: two numbers from 0 to below 1, with `algorithm=adamw`.
    Source: PyTorch's `torch.optim.AdamW`.
    """
    momentum: float = 0.9
    """Momentum of SGD.

    Unit: fraction.
    Accepted: at least 0.
    Source: section 4.2.
    """
    momentum_form: Literal["pytorch", "caffe"] = "pytorch"
    """Update rule of SGD with momentum m, gradient g, weights w and velocity v. `pytorch`: v = m·v + g and w -= lr·v. `caffe` (the
    paper): v = m·v + lr·g and w -= v, so that past gradients keep their learning rate when it drops.

    Source: Caffe's `SGDSolver`; PyTorch's `torch.optim.SGD`.
    """
    nesterov: bool = False
    """Use Nesterov momentum.

    Source: PyTorch's `torch.optim.SGD`.
    """
    weight_decay: float = 1e-4
    """L2 penalty that is added to the gradient; AdamW instead shrinks the weights by this fraction of the learning rate.

    Unit: none.
    Accepted: at least 0.
    Source: section 4.2.
    """
    decay: Literal["weights", "all"] = "all"
    """Parameters that `weight_decay` applies to. `weights`: weights of convolutions and linear layers only (many later recipes).
    `all`: also BatchNorm and biases (PyTorch's default).

    Source: Goyal et al. 2017, arXiv:1706.02677, section 5.1 (`weights`).
    """
    ema: float | None = None
    """Decay of an exponential moving average of the weights and of BatchNorm's statistics, updated in every step. Evaluations,
    probes of responses and the final network then use the average. None: the weights themselves.

    Unit: fraction.
    Accepted: above 0, below 1; 0.999 is common.
    Source: PyTorch's `torch.optim.swa_utils.get_ema_multi_avg_fn`.
    """
    bn_recalibration: bool = False
    """Replace BatchNorm's running statistics before the final test by their plain average over one more epoch of training images.
    False: keep the running statistics, as PyTorch does.

    Source: the authors' release, github.com/KaimingHe/deep-residual-networks.
    """
    schedule: Literal["step", "cosine", "constant"] = "step"
    """Learning-rate schedule. `step`: divided by 10 at each milestone. `cosine`: annealed to zero over the training.
    `constant`: `lr` in every step.

    Source: section 4.2 (`step`); Loshchilov and Hutter 2017, arXiv:1608.03983 (`cosine`).
    """
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Positions of the drops of the `step` schedule, as fractions of all steps (the paper: 32k and 48k of 64k).

    Unit: fraction.
    Accepted: rising fractions from 0 to 1.
    Source: section 4.2.
    """
    warmup_steps: int = 0
    """Number of steps at `warmup_lr` before the schedule (the paper: about 400 for 110 layers).

    Unit: steps.
    Accepted: 0 to 1,000,000,000.
    Source: section 4.2.
    """
    warmup_error: float | None = None
    """Training error that ends the warm-up, instead of a number of steps: `warmup_lr` applies until the error over 20 steps (or a
    shorter epoch) is below it. The paper uses 80 for 110 layers.

    Unit: percent.
    Accepted: above 0, at most 100, without `warmup_steps`.
    Source: section 4.2.
    """
    warmup_lr: float = 0.01
    """Learning rate of the warm-up.

    Unit: none.
    Accepted: at least 0.
    Source: section 4.2.
    """
    label_smoothing: float = 0.0
    """Fraction of the target probability that is spread evenly over all classes.

    Unit: fraction.
    Accepted: 0 to 1.
    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    changes: tuple[str, ...] = ()
    """Hyperparameters that change during the training, as in population-based training. `4:lr=0.04`: from the end of epoch 4 on,
    the peak learning rate is 0.04, and the schedule continues from its current position.

    Accepted: `EPOCH:FIELD=NUMBER` with rising epochs; fields are `lr`, `weight_decay`, `momentum` and `label_smoothing`.
    Source: Jaderberg et al. 2017, arXiv:1711.09846.
    """

    @classmethod
    def converted(cls, name: str, value: Any) -> Any:
        """Return `value` as the type of field `name`; `changes` are also checked and sorted."""
        converted = super().converted(name, value)
        if name != "changes":
            return converted
        entries = [_parsed_change(text) for text in converted]
        if any(later[0] < earlier[0] for earlier, later in pairwise(entries)):
            raise reject("optim.changes", ",".join(converted), "accepted: epochs that do not fall: 4:lr=0.04,6:lr=0.01")
        if len({entry[:2] for entry in entries}) < len(entries):
            raise reject("optim.changes", ",".join(converted), "accepted: a field once in an epoch")
        return tuple(change(*entry) for entry in sorted(entries))  # equal policies are equal specs

    def _check(self) -> None:
        self._at_least(1, "epochs", "iterations", "global_batch_size")
        self._at_most(10**9, "epochs", "iterations", "global_batch_size", "warmup_steps")
        self._at_least(0, "lr", "momentum", "weight_decay", "warmup_steps", "warmup_lr", "label_smoothing")
        if self.label_smoothing > 1:
            raise self._reject("label_smoothing", "accepted: 0 to 1")
        if any(not 0 <= m <= 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise self._reject("milestones", "accepted: rising fractions of the training, such as 0.5,0.75")
        if self.ema is not None and not 0 < self.ema < 1:
            raise self._reject("ema", "accepted: above 0 and below 1, such as 0.999")
        self._check_algorithm()
        if self.nesterov and self.momentum == 0:
            raise self._reject("nesterov", "needs optim.momentum above 0")
        if self.warmup_error is not None and not (0 < self.warmup_error <= 100 and self.warmup_steps == 0):
            raise self._reject("warmup_error", "accepted: above 0 to 100 percent, without optim.warmup_steps")
        if self.momentum_form == "caffe" and (self.lr == 0 or self.nesterov or (self.warmup_lr == 0 and self._warms_up)):
            raise self._reject("momentum_form", "caffe needs learning rates above 0 and no optim.nesterov")
        for text in self.changes:
            _, name, value = _parsed_change(text)
            if name == "momentum" and 0 in (self.momentum, value):
                raise reject("optim.changes", text, "accepted: optim.momentum above 0, before and after")
            later: dict[str, Any] = {"changes": (), name: value}
            try:
                replace(self, **later)
            except ConfigError as error:
                raise reject("optim.changes", text, str(error)) from error

    def _check_algorithm(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise self._reject("betas", "accepted: two numbers from 0 to below 1, such as 0.9,0.999")
        of_other = ("betas",) if self.algorithm == "sgd" else ("momentum", "momentum_form", "nesterov")
        defaults = {each.name: each.default for each in fields(self)}
        for name in of_other:
            if getattr(self, name) != defaults[name]:
                raise self._reject(name, f"is no setting of optim.algorithm={self.algorithm}; accepted: {defaults[name]}")
        if self.algorithm == "adamw" and any(_parsed_change(text)[1] == "momentum" for text in self.changes):
            raise self._reject("changes", "momentum is no setting of optim.algorithm=adamw")

    @property
    def _warms_up(self) -> bool:
        return self.warmup_steps > 0 or self.warmup_error is not None

    def total_steps(self, train_images: int) -> int:
        """Return the number of steps of a training on `train_images` images. Epochs consist of full global batches only."""
        return self.iterations or self.epochs * (train_images // self.global_batch_size)

    def total_epochs(self, train_images: int) -> int:
        """Return the number of epochs of a training on `train_images` images; the last one may be partial.

        Raises:
            ConfigError: `changes` names an epoch after the end of the training.
        """
        total = -(-self.total_steps(train_images) // (train_images // self.global_batch_size))
        if self.changes and _parsed_change(self.changes[-1])[0] >= total:
            raise reject("optim.changes", self.changes[-1], f"accepted: epochs below {total}, those of this training")
        return total

    def at_epoch(self, epoch: int) -> Self:
        """Return the configuration that applies after `epoch` finished epochs, with an empty `changes`."""
        changed: dict[str, Any] = {name: value for begins, name, value in map(_parsed_change, self.changes) if begins <= epoch}
        return replace(self, changes=(), **changed)


def change(epoch: int, name: str, value: float) -> str:
    """Return an entry of `OptimConfig.changes`, such as `4:lr=0.04`.

    Args:
        epoch: finished epoch after which the change applies, from 1.
        name: field, one of `CHANGEABLE`.
        value: new value of the field, written in full precision.
    """
    return f"{epoch}:{name}={float(value) + 0.0!r}"  # + 0.0: minus zero is zero


def _parsed_change(text: str) -> tuple[int, str, float]:
    """Return the epoch, field and value of an entry of `OptimConfig.changes`."""
    with suppress(ValueError):
        if found := _CHANGE.fullmatch(text):
            return int(found[1]), found[2], float(found[3])
    accepted = f"accepted: EPOCH:FIELD=NUMBER, such as 4:lr=0.04; epochs are counted from 1, fields are {', '.join(CHANGEABLE)}"
    raise reject("optim.changes", text, accepted)
