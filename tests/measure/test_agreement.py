from __future__ import annotations

import numpy as np
import pytest

from pocketvit.errors import CheckFailed
from pocketvit.measure.agreement import compare_logits

REF = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.9]], dtype=np.float32)


def test_identical_logits() -> None:
    found = compare_logits(REF, REF)
    assert (found.sqnr_db, found.top1, found.max_abs_error) == (float("inf"), 1.0, 0.0)
    assert found.smallest_margin == pytest.approx(0.1, abs=1e-6)


def test_numbers_against_a_hand_computed_case() -> None:
    candidate = REF.copy()
    candidate[1, 2] += 0.3  # flips the second image's top class
    found = compare_logits(REF, candidate)
    signal, noise = 9 + 1 + 4 + 1.9**2, 0.3**2
    assert found.sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-5)
    assert (found.top1, found.worst_image, found.images) == (0.5, 1, 2)
    assert found.max_abs_error == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (np.zeros((4, 3)), "all zero"),
        (np.tile([1.0, 2.0, 3.0], (4, 1)), "same logits"),
        (np.full((4, 3), np.nan), "not finite"),
    ],
)
def test_a_degenerate_reference_is_refused(reference: np.ndarray, words: str) -> None:
    with pytest.raises(CheckFailed, match=words):
        compare_logits(reference, reference)


def test_a_candidate_that_is_not_finite_or_misshapen_fails() -> None:
    with pytest.raises(CheckFailed, match="1 of the file's 6 logits"):
        compare_logits(REF, np.where(REF == 3, np.inf, REF))
    with pytest.raises(CheckFailed, match=r"shape \(2, 2\)"):
        compare_logits(REF, REF[:, :2])
