"""How closely one runner's logits follow another's on the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import CheckFailed
from ..types import Agreement, Evidence, Runner

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Between two images the logits of a live network differ by far more than fp32 rounding (about 1e-6 of their size
# after a few dozen layers). Below a hundred times that, agreement would say nothing.
_LEAST_VARIATION = 1e-4


def agreement(reference: Runner, candidate: Runner, images: NDArray[np.float32]) -> Agreement:
    """Compare two runners on images (N, C, H, W) in [0, 1]; raises CheckFailed on a degenerate reference."""
    return compare_logits(reference(images), candidate(images), candidate.evidence)


def compare_logits(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], evidence: Evidence = Evidence.MEASURED
) -> Agreement:
    """Compare logits (N, classes).

    Raises CheckFailed when the reference is all zero, not finite, or the same for every image (as some untrained
    models are: agreement with it proves nothing), or when the candidate has another shape or is not finite.
    """
    ref, cand = reference.astype(np.float64), candidate.astype(np.float64)
    if ref.shape != cand.shape:
        raise CheckFailed(f"The file returns logits of shape {cand.shape}, the model {ref.shape}.")
    refuse_degenerate(ref)
    if not np.isfinite(cand).all():
        raise CheckFailed(f"{int((~np.isfinite(cand)).sum())} of the file's {cand.size} logits are not finite.")
    error = ref - cand
    noise, signal = float((error**2).sum()), float((ref**2).sum())
    ordered = np.sort(ref, axis=1)
    margins = ordered[:, -1] - ordered[:, -2] if ref.shape[1] > 1 else np.abs(ordered[:, -1])
    return Agreement(
        images=len(ref),
        sqnr_db=10 * float(np.log10(signal / noise)) if noise else float("inf"),
        cosine=float((ref * cand).sum() / np.sqrt(signal * (cand**2).sum())) if cand.any() else 0.0,
        max_abs_error=float(np.abs(error).max()),
        top1=float((ref.argmax(1) == cand.argmax(1)).mean()),
        worst_image=int((error**2).sum(axis=1).argmax()),
        smallest_margin=float(margins.min()),
        evidence=evidence,
    )


def refuse_degenerate(reference: NDArray[np.floating]) -> None:
    """Raise CheckFailed when these reference logits (N, classes) cannot prove anything."""
    if not np.isfinite(reference).all():
        raise CheckFailed("The model's own logits are not finite, so there is nothing to compare a file with.")
    size = float(np.abs(reference).max())
    if size == 0:
        raise CheckFailed("The model's logits are all zero (some untrained models do this); train it or load weights.")
    variation = float(np.ptp(reference, axis=0).max()) / size
    if len(reference) > 1 and variation < _LEAST_VARIATION:
        raise CheckFailed(
            f"The model gives every image the same logits (they vary by {variation:.1e} of their size), so agreement "
            "with it would prove nothing; train it or load weights."
        )
