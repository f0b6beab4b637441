"""The last step of every encoder: features to unit rows, or an error that says which one is unusable."""

from __future__ import annotations

import numpy as np

from indexer.errors import ModelError


def unit_rows(features: np.ndarray, what: str) -> np.ndarray:
    """Features ``(B, D)`` to float32 unit rows ``(B, D)``; ``what`` names a row in the error, as ``text`` or ``image``.

    Raises:
        ModelError: a row is zero or not finite.
    """
    features = np.asarray(features, dtype=np.float32)
    norms = np.linalg.norm(features.astype(np.float64), axis=1)  # (B,)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ModelError(
            f"the model gave an unusable vector (zero or not finite) for {what} {bad[0] + 1} of {len(features)}"
        )
    return (features / norms[:, None]).astype(np.float32)
