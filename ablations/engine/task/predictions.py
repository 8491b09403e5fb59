"""`Predictions`: what a trained network predicts for each test example, as a compact file."""

import io
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes of the test examples of one run, in the order of the test set."""

    classes: npt.NDArray[Any]
    """Predicted class of each example (N,), a number from 0."""
    correct: npt.NDArray[np.bool_]
    """True for each example whose predicted class is right (N,)."""

    def to_bytes(self) -> bytes:
        """Return the content of an `.npz` file that `numpy.load` opens: less than a byte and a bit per example with 256 classes.

        `classes` has the smallest unsigned integer type; `correct` holds eight examples in a byte, as `numpy.packbits` does.
        """
        file = io.BytesIO()
        smallest = np.min_scalar_type(int(self.classes.max(initial=0)))
        np.savez_compressed(file, classes=self.classes.astype(smallest), correct=np.packbits(self.correct))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the predictions that `to_bytes` wrote.

        Raises:
            ValueError: the content is no such file.
        """
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as stored:
                classes, packed = stored["classes"], stored["correct"]
            return cls(classes, np.unpackbits(packed, count=len(classes)).astype(bool))
        except Exception as error:  # zipfile, zlib and NumPy each raise their own
            raise ValueError(f"no predictions: {error}") from error
