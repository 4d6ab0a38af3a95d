"""The measures, as formulas over vectors (numpy and scipy only). Rows are pictures unless said otherwise.

CLIP score: Hessel et al. 2021 (arXiv 2104.08718), without their factor of 2.5, in the paper's scale of 100 x cosine.
FID: Heusel et al. 2017 (arXiv 1706.08500). KID: Bińkowski et al. 2018 (arXiv 1801.01401). dFID: the paper's
section 4.3, the trace of the covariance of one prompt's pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64
from scipy import stats
from scipy.linalg import eigh, svdvals

RESAMPLES = 4000
CONFIDENCE = 0.95
SEED = 0
"""Of the bootstrap: the same figures from the same pictures."""

Vectors = Float[np.ndarray, "n d"]
PerPrompt = Float64[np.ndarray, " prompts"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Zero lies outside: for differences."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Moments:
    """What FID knows of a set of pictures."""

    mean: Float64[np.ndarray, " d"]
    covariance: Float64[np.ndarray, "d d"]


def clip_score(images: Vectors, texts: Vectors) -> Float[np.ndarray, " n"]:
    """100 x the cosine of each picture with its text, at least 0. Vectors of length 1."""
    scores: Float[np.ndarray, " n"] = 100 * np.clip((images * texts).sum(1), 0, None)
    return scores


def cosines(one: Vectors, other: Vectors) -> Float[np.ndarray, " n"]:
    """Row by row, in [-1, 1]; vectors of any length but 0."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Float[np.ndarray, " n"] = (one * other).sum(1) / lengths
    return found


def moments(vectors: Vectors) -> Moments:
    """Of at least two vectors; the covariance is the unbiased one."""
    exact = vectors.astype(np.float64)
    return Moments(exact.mean(0), np.atleast_2d(np.cov(exact, rowvar=False)))


def fid(one: Moments, other: Moments) -> float:
    """Fréchet distance of two Gaussians, at least 0. Estimated from few pictures it comes out too large: compare only
    FIDs of equally many, and look at the KID beside it."""
    # the trace of (A B)^1/2 is the sum of the singular values of A^1/2 B^1/2, which also holds where few pictures leave
    # A singular; scipy's sqrtm of A B gives up there
    shared = svdvals(_root(one.covariance) @ _root(other.covariance)).sum()
    traces = np.trace(one.covariance) + np.trace(other.covariance) - 2 * shared
    return max(0.0, float(((one.mean - other.mean) ** 2).sum() + traces))


def _root(covariance: Float64[np.ndarray, "d d"]) -> Float64[np.ndarray, "d d"]:
    values, vectors = eigh(covariance)
    found: Float64[np.ndarray, "d d"] = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    return found


def kid(one: Vectors, other: Vectors) -> float:
    """Squared maximum mean discrepancy under the kernel (x.y / d + 1)^3, unbiased: it may be below 0, and does not
    depend on how many pictures there are. At least two of each."""
    x, y = one.astype(np.float64), other.astype(np.float64)

    def kernel(a: Vectors, b: Vectors) -> Float64[np.ndarray, "n m"]:
        found: Float64[np.ndarray, "n m"] = (a @ b.T / a.shape[1] + 1) ** 3
        return found

    within = sum((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y)))
    return float(within - 2 * kernel(x, y).mean())


def dfid(vectors: Vectors) -> float:
    """Trace of the (unbiased) covariance of one prompt's pictures: how much they differ. At least two."""
    return float(vectors.astype(np.float64).var(axis=0, ddof=1).sum())


def blocked(scores: Float[np.ndarray, "images keywords"], control: Float[np.ndarray, "images keywords"]) -> int:
    """Keywords that lost to adapters (task blocking): their mean score fell below the control's by more than the
    standard deviation of the control's images."""
    spread = control.std(axis=0, ddof=1) if len(control) > 1 else np.zeros(control.shape[1])
    return int((scores.mean(0) < control.mean(0) - spread).sum())


def bootstrapped(values: PerPrompt, weights: PerPrompt | None = None) -> Interval:
    """The weighted mean over prompts with a percentile bootstrap interval, prompts resampled whole: pictures of one
    prompt are not independent. Pass differences of two arms, prompt by prompt, to compare them (paired)."""
    weights = np.ones(len(values)) if weights is None else weights
    value = float((values * weights).sum() / weights.sum())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(value, value, value)

    def mean(values: PerPrompt, weights: PerPrompt, axis: int) -> Float64[np.ndarray, " resamples"]:
        found: Float64[np.ndarray, " resamples"] = (values * weights).sum(axis) / weights.sum(axis)
        return found

    found = stats.bootstrap(
        (values, weights),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def share(hits: int, of: int) -> Interval:
    """A share with its Wilson interval. `of` at least 1."""
    interval = stats.binomtest(hits, of).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / of, float(interval.low), float(interval.high))


def win_tie_lose(ours: PerPrompt, theirs: PerPrompt, margin: float = 0.0) -> Mapping[str, Interval]:
    """On which share of prompts ours is better by more than `margin`, within it or worse by more, with Wilson
    intervals."""
    difference = ours - theirs
    outcomes = {"win": difference > margin, "tie": np.abs(difference) <= margin, "lose": difference < -margin}
    return {name: share(int(true.sum()), len(difference)) for name, true in outcomes.items()}


def slope(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Of the line through points by the Theil-Sen estimator, with its interval: outliers don't pull it."""
    found = stats.theilslopes(y, x, alpha=CONFIDENCE)
    return Interval(float(found.slope), float(found.low_slope), float(found.high_slope))
