"""How the vectors of pictures and of texts lie to each other in one space: shared information, gap, alignment.

Everything here is arithmetic on paired rows: ``images: (N, D)`` and ``texts: (N, E)``, row i of both about the same
thing. Information is in nats (1 nat = 1.44 bit).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from indexer.errors import UsageError

MIN_PAIRS = 20
"""Below this, halves of halves are too few to fit and to measure anything."""
MAX_PAIRS = 5000
"""Of more, so many are drawn: time grows with their square, and the third digit is all that changes."""
COMPONENTS = 10
"""Canonical correlations that are reported; later ones of real encoders say little more."""
KNN_COMPONENTS = 2
"""Canonical components whose information is estimated from neighbours. More are too sparse: of correlations 0.8, 0.6
and 0.5, worth 0.88 nats, 500 Gaussian pairs show 0.73; of the first two, worth 0.73, they show 0.71."""
NEIGHBOURS = 3
"""k of the neighbour estimate; Kraskov et al. call 2 to 4 a fair trade of bias for variance."""
RIDGES = (0.01, 0.1, 1.0, 10.0)
"""Strengths of the ridge that are tried, in units of the mean variance of a dimension."""
MAX_SCALE = 500.0
"""The steepest scale that InfoNCE may choose; CLIP clips its own at 100 (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True, slots=True)
class CanonicalDirections:
    """Directions in which two sets of rows vary together, the most correlated first."""

    image_mean: np.ndarray  # (D,)
    text_mean: np.ndarray  # (E,)
    image_weights: np.ndarray  # (D, K)
    text_weights: np.ndarray  # (E, K)

    def project(self, images: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sets of rows along the directions: two ``(N, K)``."""
        return (images - self.image_mean) @ self.image_weights, (texts - self.text_mean) @ self.text_weights


@dataclass(frozen=True, slots=True)
class Gap:
    """How far apart the two modalities lie as wholes.

    ``distance`` is between the centroids (0 to 2 for unit rows), ``cosine`` between the directions of the centroids,
    and ``separability`` is the part of unseen rows that a plane tells apart (0.5: none does better than chance).
    """

    distance: float
    cosine: float
    separability: float


@dataclass(frozen=True, slots=True)
class Modalities:
    """The relation of two modalities; information in nats, all but gap, alignment and uniformity on unseen pairs."""

    pairs: int
    correlations: tuple[float, ...]
    """Canonical correlations, the strongest direction of the fitted half first."""
    ridge: float
    gaussian_information: float
    """What the first ``KNN_COMPONENTS`` correlations are worth if everything were Gaussian."""
    knn_information: float
    """The same components, by the neighbours of each pair, whatever their distribution."""
    infonce_bound: float
    """At least so much information do the cosines carry about which picture belongs to which text."""
    infonce_ceiling: float
    """No InfoNCE bound can be higher: the logarithm of the number of pairs it was measured on."""
    gap: Gap
    alignment: float
    image_uniformity: float
    text_uniformity: float

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def modalities(images: np.ndarray, texts: np.ndarray, *, seed: int = 0) -> Modalities:
    """Every measure of this module on paired rows ``images: (N, D)`` and ``texts: (N, D)``.

    Whatever has to be fitted is fitted on a random half of the pairs and measured on the other. Of more than
    ``MAX_PAIRS`` pairs, so many are drawn.

    Raises:
        UsageError: fewer than ``MIN_PAIRS`` pairs, or rows that are not paired.
    """
    _check_paired(images, texts)
    if len(images) < MIN_PAIRS:
        raise UsageError(f"{len(images)} pairs of a picture and a text are too few: at least {MIN_PAIRS} are needed")
    drawn = np.random.default_rng(seed).permutation(len(images))[:MAX_PAIRS]
    images, texts = images[drawn].astype(np.float64), texts[drawn].astype(np.float64)
    seen, unseen = halves(len(images), seed)
    ridge = choose_ridge(images[seen], texts[seen])
    directions = fit_cca(images[seen], texts[seen], ridge=ridge)
    projected = directions.project(images[unseen], texts[unseen])  # two (N / 2, K)
    correlations = column_correlations(*projected)
    scale = best_scale(images[seen] @ texts[seen].T)
    return Modalities(
        pairs=len(images),
        correlations=tuple(map(float, correlations)),
        ridge=ridge,
        gaussian_information=gaussian_information(correlations[:KNN_COMPONENTS]),
        knn_information=knn_information(*(_standard(rows[:, :KNN_COMPONENTS]) for rows in projected)),
        infonce_bound=infonce_bound(images[unseen] @ texts[unseen].T, scale),
        infonce_ceiling=float(np.log(len(unseen))),
        gap=modality_gap(images, texts, seed=seed),
        alignment=alignment(images, texts),
        image_uniformity=uniformity(images),
        text_uniformity=uniformity(texts),
    )


def halves(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The numbers below ``count`` in two random halves, the second the larger where they are odd."""
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]


# --- canonical correlation


def fit_cca(
    images: np.ndarray, texts: np.ndarray, *, ridge: float, components: int = COMPONENTS
) -> CanonicalDirections:
    """Regularised canonical correlation analysis (Hotelling 1936; Hardoon et al. 2004).

    With covariances C, the directions are C_xx^-1/2 u and C_yy^-1/2 v for the singular vectors u, v of
    C_xx^-1/2 C_xy C_yy^-1/2. ``ridge`` times the mean variance of a dimension is added to the diagonals of C_xx and
    C_yy: without it, as many pairs as dimensions correlate perfectly, and mean nothing. Directions in which a modality
    does not vary at all have no weight.

    Args:
        images, texts: paired rows ``(N, D)`` and ``(N, E)``.
        components: how many directions, at most; never more than the smaller of D and E.
    """
    x, y = images - images.mean(axis=0), texts - texts.mean(axis=0)
    whiten_x, whiten_y = _whitening(x, ridge), _whitening(y, ridge)  # (D, D), (E, E)
    u, _, v = np.linalg.svd(whiten_x @ (x.T @ y / len(x)) @ whiten_y, full_matrices=False)
    k = min(components, len(v))
    return CanonicalDirections(
        images.mean(axis=0), texts.mean(axis=0), whiten_x @ u[:, :k], whiten_y @ v[:k].T
    )  # (D,), (E,), (D, K), (E, K)


def choose_ridge(images: np.ndarray, texts: np.ndarray) -> float:
    """The strength of ``RIDGES`` whose directions, fitted on three quarters, correlate most on the last quarter."""
    cut = 3 * len(images) // 4

    def quality(ridge: float) -> float:
        directions = fit_cca(images[:cut], texts[:cut], ridge=ridge)
        return float(column_correlations(*directions.project(images[cut:], texts[cut:])).mean())

    return max(RIDGES, key=quality)


def column_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column of ``x: (N, K)`` with that of ``y: (N, K)``: ``(K,)``; 0 where one is flat.

    The columns (1, 2, 3) and (1, 3, 2) have 0.5.
    """
    return np.asarray(np.einsum("nk,nk->k", _standard(x), _standard(y)) / len(x))


# --- mutual information


def gaussian_information(correlations: np.ndarray) -> float:
    """Mutual information, in nats, of Gaussians with canonical ``correlations: (K,)``: -1/2 sum log(1 - rho^2).

    One correlation of 0.6 is worth -log(0.64) / 2 = 0.223 nats.
    """
    return float(-np.log1p(-np.square(np.clip(correlations, -1 + 1e-12, 1 - 1e-12))).sum() / 2) + 0.0


def knn_information(x: np.ndarray, y: np.ndarray, *, k: int = NEIGHBOURS) -> float:
    """Mutual information, in nats, of paired samples by the first estimator of Kraskov et al. (2004), equation 8.

    With e_i the distance of pair i to its k-th neighbour in the maximum norm over both spaces, and n_x, n_y how many
    others are *strictly* nearer than e_i in each space alone,

        I = psi(k) + psi(N) - mean(psi(n_x + 1) + psi(n_y + 1))

    It can fall a little below zero for independent samples. ``x: (N, D)`` and ``y: (N, E)`` should have about the same
    spread in each dimension, and few dimensions.

    Raises:
        UsageError: there are not more than ``k`` pairs.
    """
    from scipy.spatial import cKDTree
    from scipy.special import digamma

    _check_paired(x, y)
    if len(x) <= k:
        raise UsageError(f"{len(x)} pairs have no {k} neighbours each")
    both = np.concatenate([x, y], axis=1)  # (N, D + E)
    distance = cKDTree(both).query(both, k=k + 1, p=np.inf)[0][:, k]  # (N,) the first neighbour is the pair itself
    radius = np.nextafter(distance, 0)  # the tree counts "at most", the formula "less than"

    def nearer(rows: np.ndarray) -> np.ndarray:
        counts = cKDTree(rows).query_ball_point(rows, radius, p=np.inf, return_length=True)
        return np.where(distance > 0, counts - 1, 0)

    return float(digamma(k) + digamma(len(x)) - (digamma(nearer(x) + 1) + digamma(nearer(y) + 1)).mean())


def infonce_bound(cosines: np.ndarray, scale: float) -> float:
    """A lower bound of the mutual information, in nats: log N - loss (van den Oord et al. 2018, section 2.3).

    The loss is the cross-entropy of finding the partner among N by ``scale`` times the cosine, the mean of both
    directions; the bound can never be more than log N (Poole et al. 2019).

    Of two pairs with cosines ((1, 0), (0, 1)) and scale 1, the loss is log(1 + 1/e) = 0.313, and the bound
    0.693 - 0.313 = 0.380.

    Args:
        cosines: ``(N, N)``, partners on the diagonal.
    """
    from scipy.special import logsumexp

    logits = scale * cosines
    loss = (logsumexp(logits, axis=0) + logsumexp(logits, axis=1)).mean() / 2 - logits.diagonal().mean()
    return float(np.log(len(cosines)) - loss)


def best_scale(cosines: np.ndarray) -> float:
    """The scale between 0 and ``MAX_SCALE`` with the highest ``infonce_bound``, which is concave in it."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda scale: -infonce_bound(cosines, scale), bounds=(0, MAX_SCALE), method="bounded")
    return float(found.x)


# --- geometry


def modality_gap(images: np.ndarray, texts: np.ndarray, *, seed: int = 0) -> Gap:
    """The gap of Liang et al. (2022), which is the distance of the centroids, and whether a plane runs through it.

    The plane is the regularised least-squares one (Fisher's discriminant, as the sides are of one size), fitted on half
    of the pairs and tried on the others.

    Pictures all at (1, 0) and texts all at (0, 1) are 1.414 apart, with cosine 0 and separability 1.
    """
    _check_paired(images, texts)
    image_centroid, text_centroid = images.mean(axis=0), texts.mean(axis=0)  # (D,)
    norms = float(np.linalg.norm(image_centroid) * np.linalg.norm(text_centroid))
    seen, unseen = halves(len(images), seed)
    middle = (images[seen].mean(axis=0) + texts[seen].mean(axis=0)) / 2  # (D,)
    rows = np.concatenate([images[seen], texts[seen]]) - middle  # (N, D)
    side = np.repeat([1.0, -1.0], len(seen))  # (N,)
    covariance = rows.T @ rows / len(rows)  # (D, D)
    ridge = 0.01 * np.trace(covariance) / len(covariance) + 1e-12
    normal = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), rows.T @ side / len(rows))  # (D,)
    right = np.concatenate([(images[unseen] - middle) @ normal > 0, (texts[unseen] - middle) @ normal < 0])
    return Gap(
        distance=float(np.linalg.norm(image_centroid - text_centroid)),
        cosine=float(image_centroid @ text_centroid / norms) if norms else 0.0,
        separability=float(right.mean()),
    )


def alignment(images: np.ndarray, texts: np.ndarray) -> float:
    """The mean squared distance of partners (Wang & Isola 2020, section 4.1, alpha = 2): 0 at best, 4 at worst."""
    _check_paired(images, texts)
    return float(np.square(images - texts).sum(axis=1).mean())


def uniformity(rows: np.ndarray) -> float:
    """log mean exp(-2 d^2) over all pairs of different rows ``(N, D)`` (Wang & Isola 2020, section 4.1, t = 2).

    0 where all rows are one, lower the more evenly they are spread: two opposite unit rows have -8. In many dimensions
    nearly all of a sphere is 1.41 away, so that even rows have about -4.
    """
    from scipy.spatial.distance import pdist

    return float(np.log(np.exp(-2 * pdist(rows, "sqeuclidean")).mean()))


def _whitening(centred: np.ndarray, ridge: float) -> np.ndarray:
    """The inverse square root ``(D, D)`` of the covariance of ``centred: (N, D)`` with a ridge."""
    covariance = centred.T @ centred / len(centred)
    added = ridge * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance + added * np.eye(len(covariance)))
    usable = values > 1e-12 * max(values[-1], 1e-300)
    return np.asarray((vectors[:, usable] / np.sqrt(values[usable])) @ vectors[:, usable].T)


def _standard(rows: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; flat ones are 0."""
    centred = rows - rows.mean(axis=0)
    spread = centred.std(axis=0)
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12))


def _check_paired(images: np.ndarray, texts: np.ndarray) -> None:
    if len(images) != len(texts):
        raise UsageError(f"{len(images)} rows of pictures and {len(texts)} of texts are no pairs")
