"""`Metric`: the quantity by which runs are compared."""

import math
import posixpath
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

from resnet_core.fields import reject

Better = Literal["lower", "higher"]
PERCENT = "%"
"""Unit of shares. A difference between shares is in percentage points."""
SHARES = ("accuracy", "precision", "recall", "f1", "auc", "auroc", "iou", "dice")
"""Last words of the names of metrics that are shares: a value within 0 and 1 if they have no unit."""
ACCEPTED_NAMES = "letters, digits and _ - . : / and spaces, such as valid/loss"
"""Names that MLflow accepts for metrics, in words."""
_MAX_NAME_LENGTH = 250
"""Maximum length of a metric's name in MLflow, in characters."""


@dataclass(frozen=True)
class Metric:
    """A quantity that every epoch of a training reports and by which runs are compared."""

    name: str
    """Key among the metrics of an epoch, such as `valid/loss`. The part before the slash names the data it is computed on."""
    unit: str = ""
    """Unit of its values, such as `nats` or `%`; empty for a plain number."""
    better: Better = "lower"
    """`lower` if smaller values are better, otherwise `higher`."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that is not accepted."""
        if not (isinstance(self.name, str) and self.name.strip() == self.name and is_metric_name(self.name)):
            raise reject("metric", self.name, f"accepted: a key of the metrics that training yields, of {ACCEPTED_NAMES}")
        if not isinstance(self.unit, str):
            raise reject("metric unit", self.unit, "accepted: text, such as nats, or nothing for a plain number")
        if self.better not in get_args(Better):
            raise reject("metric better", self.better, f"accepted: {', '.join(get_args(Better))}")

    @property
    def split(self) -> str:
        """Data that the metric is computed on, the first part of its name: `valid` of `valid/loss`; empty without a slash."""
        return self.name.rpartition("/")[0]

    @property
    def quantity(self) -> str:
        """Last part of the name: `loss` of `valid/loss`."""
        return self.name.rpartition("/")[2]

    @property
    def label(self) -> str:
        """Name in words: `valid loss` of `valid/loss`."""
        return self.name.replace("/", " ").replace("_", " ")

    @property
    def difference_unit(self) -> str:
        """Unit of a difference: `points` for percentages, otherwise the unit of the values."""
        return "points" if self.unit == PERCENT else self.unit

    @property
    def training_name(self) -> str:
        """Name of the same quantity on the training data, `train/loss` of `valid/loss`; runs may or may not report it."""
        return f"train/{self.quantity}"

    @property
    def training(self) -> "Metric":
        """The same quantity on the training data."""
        return replace(self, name=self.training_name)

    @property
    def heading(self) -> str:
        """Heading of a column or an axis: `test error %`, `valid loss, nats`."""
        return self.with_unit(self.label)

    def with_unit(self, text: str) -> str:
        """Return a heading followed by the unit of the values."""
        return f"{text} {PERCENT}" if self.unit == PERCENT else f"{text}, {self.unit}" if self.unit else text

    @property
    def unit_words(self) -> str:
        """Unit of the values in a sentence: `percent`; empty for a plain number."""
        return "percent" if self.unit == PERCENT else self.unit

    @property
    def difference_words(self) -> str:
        """Unit of a difference in a sentence: `percentage points`; empty for a plain number."""
        return "percentage points" if self.unit == PERCENT else self.unit

    @property
    def best(self) -> str:
        """Word for the best of several values: `lowest` or `highest`."""
        return "lowest" if self.better == "lower" else "highest"

    @property
    def key(self) -> str:
        """Name with `_` in place of `/`, for columns of tables: `valid_loss` of `valid/loss`."""
        return self.name.replace("/", "_")

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest possible value: 0 and 100 for percentages, otherwise unlimited."""
        return (0.0, 100.0) if self.unit == PERCENT else (-math.inf, math.inf)

    def limits(self, values: Iterable[float]) -> tuple[float, float]:
        """Return the least and largest value at which an interval of the metric ends when it is shown.

        These are `bounds`; a share without a unit, such as `accuracy`, also lies within 0 and 1 if all its values do. They are for
        display only: no test uses them.

        Args:
            values: Values of the metric; NaN without a result.
        """
        low, high = self.bounds
        if self.unit or self.quantity.rpartition("_")[2] not in SHARES:
            return low, high
        known = [value for value in values if math.isfinite(value)]
        return (0.0, 1.0) if known and min(known) >= 0 and max(known) <= 1 else (low, high)

    def minimized(self, value: Any) -> Any:
        """Return a value, or an array of values, as a quantity of which less is better. Applied twice, it returns the value."""
        return value if self.better == "lower" else -value

    def is_better(self, difference: float) -> bool:
        """Return whether a difference, value minus reference, is an improvement."""
        return difference < 0 if self.better == "lower" else difference > 0

    def to_dict(self) -> dict[str, str]:
        """Return the metric as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the metric that `to_dict` wrote."""
        return cls(**values)


def is_metric_name(name: str) -> bool:
    """Return whether MLflow accepts a name of a metric: certain characters that form a relative path in its shortest form."""
    path = posixpath.normpath(name)
    return (
        re.fullmatch(r"[\w.\- :/]+", name) is not None
        and len(name) <= _MAX_NAME_LENGTH
        and path == name
        and path != "."
        and not path.startswith(("/", ".."))
    )


def error_metric(split: str) -> Metric:
    """Return the metric of image classification: the share of the images of a split that are classified wrongly, in percent."""
    return Metric(f"{split}/error", PERCENT)
