"""Calibration: from the cosines of a model to the odds of a match, so that pictures and texts stand in one list."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from indexer.encoders import Encoder
from mmsearch.datasets import Captioned

LIBRARY = 1000
"""A score of 0.5 says: as likely a match as not, where one item in so many matches."""
SAME_SCENE = 3e-4
"""The part of all pairs of pictures that count as the same scene: those whose captions are most alike. Of a thousand
pictures of Flickr8k that is 150 pairs, the last of them two girls in bathing suits on two beaches."""
NEWTON_STEPS = 50
DECAY = 1e-4
CHUNK = 64


def calibrate(encoder: Encoder, data: Captioned, *, seed: int = 0) -> dict[str, dict[str, float]]:
    """The mean and standard deviation of an unrelated pair's cosine, and the odds of a match above it.

    For each pair "what is asked -> what is found", logit(score) = slope · (cosine - mean) / std + bias (Platt 1999),
    fitted by maximum likelihood with matched and unrelated pairs weighted as 1 to 1,000. Matched are

    - text and image: a picture and its caption;
    - text and text: two captions of one picture;
    - image and image: a picture and a harmless change of it (cropped, mirrored, recoloured, recompressed), and, with
      the same weight in all, two pictures of the same scene by what people said about them.

    Everything else in the gallery counts as unrelated.
    """
    texts, owners = data.flat()
    owner = np.array(owners)
    pictures = [picture.open() for picture in data.pictures]
    rng = np.random.default_rng(seed)
    image = _encode(encoder, pictures)  # (N, D)
    altered = _encode(encoder, [harmless(picture, rng) for picture in pictures])  # (N, D)
    text = encoder.encode_texts(texts)  # (M, D)

    across = text @ image.T  # (M, N)
    among_texts = text @ text.T  # (M, M)
    among_images = image @ image.T  # (N, N)
    own = owner[:, None] == np.arange(len(image))  # (M, N)
    siblings = (owner[:, None] == owner) & ~np.eye(len(text), dtype=bool)  # (M, M)
    unrelated_texts = owner[:, None] != owner  # (M, M)
    same = _same_scene(among_texts, owner, len(image))  # (N, N)
    unrelated_images = ~same & ~np.eye(len(image), dtype=bool)

    between = _fit([across[own]], across[~own])
    changed = np.einsum("nd,nd->n", image, altered)  # (N,)
    scenes = among_images[same]
    return {
        "text->image": between,
        "image->text": dict(between),
        "text->text": _fit([among_texts[siblings]], among_texts[unrelated_texts]),
        "image->image": _fit([changed, scenes] if scenes.size else [changed], among_images[unrelated_images]),
    }


def harmless(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as someone might have saved it again: 70 to 100 % of it, perhaps mirrored, other colours, JPEG."""
    width, height = image.size
    side = np.sqrt(rng.uniform(0.7, 1.0))
    w, h = max(1, int(width * side)), max(1, int(height * side))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    image = image.crop((left, top, left + w, top + h))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(0.8, 1.2))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(rng.integers(40, 91)))
    return Image.open(stream).convert("RGB")


def fit_logistic(values: np.ndarray, label: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, float]:
    """Slopes ``(F,)`` and bias of the log-odds, a weighted sum of values, by maximum likelihood (Newton's method).

    A trace of weight decay keeps the slopes finite where the sum separates matches from the rest without a fault.

    Args:
        values: ``(N, F)``.
        label, weight: ``(N,)``; a label is 1 for a match and 0 for none.
    """
    design = np.concatenate([values, np.ones((len(values), 1))], axis=1).astype(np.float64)  # (N, F + 1)
    rate = float((weight * label).sum() / weight.sum())
    decay = np.full(design.shape[1], DECAY)
    decay[-1] = 0
    theta = np.zeros(design.shape[1])
    theta[-1] = np.log(rate / (1 - rate))

    def cost(at: np.ndarray) -> float:
        logits = design @ at
        return float((weight * (np.logaddexp(0, logits) - label * logits)).sum() + (decay * at * at).sum() / 2)

    for _ in range(NEWTON_STEPS):
        odds = 1 / (1 + np.exp(-np.clip(design @ theta, -500, 500)))
        gradient = design.T @ (weight * (odds - label)) + decay * theta
        curvature = (design * (weight * odds * (1 - odds))[:, None]).T @ design + np.diag(decay + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while cost(theta - size * step) > cost(theta) and size > 1e-8:  # a full step can overshoot
            size /= 2
        theta = theta - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return theta[:-1], float(theta[-1])


def _fit(matched: Sequence[np.ndarray], unrelated: np.ndarray) -> dict[str, float]:
    """The line of one pair of modalities; each group of matched cosines has the same weight in all."""
    mean, std = float(unrelated.mean(dtype=np.float64)), float(unrelated.std(dtype=np.float64))
    kept = unrelated[:: max(1, len(unrelated) // 2_000_000)].astype(np.float64)
    value = (np.concatenate([*matched, kept]) - mean) / std
    label = np.concatenate([*(np.ones(len(group)) for group in matched), np.zeros(len(kept))])
    weight = np.concatenate(
        [
            *(np.full(len(group), 1 / len(matched) / len(group)) for group in matched),
            np.full(len(kept), LIBRARY / len(kept)),
        ]
    )
    slopes, bias = fit_logistic(value[:, None], label, weight)
    line = {"mean": mean, "std": std, "slope": float(slopes[0]), "bias": bias}
    return {name: round(number, 6) for name, number in line.items()}


def _same_scene(among_texts: np.ndarray, owner: np.ndarray, pictures: int) -> np.ndarray:
    """Which pairs of different pictures ``(N, N)`` were described alike: symmetric, the diagonal false.

    For each caption of one picture the most similar of the other, and the mean of these, both ways.
    """
    nearest = np.full((len(owner), pictures), -np.inf, np.float32)  # (M, N) each caption to each picture's nearest
    for picture in range(pictures):
        nearest[:, picture] = among_texts[:, owner == picture].max(axis=1)
    total = np.zeros((pictures, pictures), np.float32)
    np.add.at(total, owner, nearest)
    likeness = total / np.bincount(owner, minlength=pictures)[:, None]
    likeness = np.triu((likeness + likeness.T) / 2, 1)
    count = int(SAME_SCENE * pictures * (pictures - 1) / 2)
    same = np.zeros((pictures, pictures), bool)
    same.flat[np.argsort(-likeness, axis=None, kind="stable")[:count]] = True
    return same | same.T


def _encode(encoder: Encoder, pictures: Sequence[Image.Image]) -> np.ndarray:
    return np.concatenate([encoder.encode_images(pictures[i : i + CHUNK]) for i in range(0, len(pictures), CHUNK)])
