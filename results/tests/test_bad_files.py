"""Damaged and unsuitable files: one sentence that names the file or the flag."""

import numpy as np
import pytest
from comparison.cli import UserError
from comparison.images import load_npz


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ([(4, 0, 8, 3)], "not uint8"),
        ([(0, 8, 8, 3)], "not uint8"),
        ([(4, 8, 8, 3), [0, 1, 2]], r"\(3,\) labels for 4"),
        ([(4, 8, 8, 3), [0, 1, 2, -1]], "class numbers"),
        ([(4, 8, 8, 3), [0.0, 1.0, 2.5, 3.0]], "class numbers"),
        ([(4, 8, 8, 3), [0, 1, 2, 10**9]], "class numbers"),
        ([(4, 8, 8, 3), ["a", "b", "c", "d"]], "class numbers"),
        ([(4, 8, 8, 3), [True, False, True, False]], "class numbers"),
    ],
)
def test_arrays_that_are_no_images_or_no_labels_are_refused(arrays, words, tmp_path):
    shape, *labels = arrays
    np.savez(tmp_path / "set.npz", np.zeros(shape, np.uint8), *map(np.array, labels))
    with pytest.raises(UserError, match=words):
        load_npz(tmp_path / "set.npz")
