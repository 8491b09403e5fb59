"""Predictions of a run as a compact file."""

import numpy as np
import pytest

from ablations.engine.task.predictions import Predictions


@pytest.mark.parametrize(("classes", "kind"), [(10, np.uint8), (256, np.uint8), (1000, np.uint16), (70_000, np.uint32)])
def test_a_file_holds_each_class_and_whether_it_is_right_and_is_small(classes: int, kind: type) -> None:
    rng = np.random.default_rng(0)
    given = Predictions(rng.integers(classes, size=1003).astype(np.int32), rng.random(1003) < 0.9)
    given.classes[0] = classes - 1
    content = given.to_bytes()
    found = Predictions.from_bytes(content)
    assert found.classes.dtype == np.dtype(kind)
    assert found.correct.dtype == np.dtype(bool)
    assert found.classes.tolist() == given.classes.tolist()
    assert found.correct.tolist() == given.correct.tolist()
    assert len(content) < 1003 * (np.dtype(kind).itemsize + 1 / 8) + 600
    assert content == given.to_bytes()


@pytest.mark.parametrize("damaged", [b"", b"half of", Predictions(np.arange(9), np.ones(9, bool)).to_bytes()[:-50]])
def test_a_damaged_file_is_a_value_error(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="no predictions"):
        Predictions.from_bytes(damaged)
