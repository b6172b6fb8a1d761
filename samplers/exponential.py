"""Exact weights of exponential integrators, on the host in float64.

With l = log(α/σ), half the log-SNR, and D as a function of l along the solution, the probability-flow ODE (η = 0) and
the reverse SDE (η = 1) read, from knot (α, σ, l) to (α', σ', l'), h = l' − l:

    (1)  x' = (σ'/σ)·e^(−ηh)·x + α'·∫_l^l' (1+η)·e^(−(1+η)(l'−m))·D(m) dm + σ'·√(1 − e^(−2ηh))·z
                                                              DPM-Solver++, 2211.01095
    (2)  D(m) ≈ Σⱼ ℓⱼ(m)·D(lⱼ),  ℓⱼ the Lagrange polynomials of the knots lⱼ

so that the weight of D(lⱼ) is α' times ∫ (1+η)e^(−(1+η)(l'−m))·ℓⱼ(m) dm. A knot with α = 0 has l = −∞: a step from it
is of first order, and none of the later ones looks back to it.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from paths.grids import Knots

F64 = np.ndarray
NODES, WEIGHTS = np.polynomial.legendre.leggauss(
    16
)  # exact to rounding for steps of up to 10 nats of l, where t(l) is smooth


def half_log_snr(knots: Knots) -> Float[F64, "n"]:
    """l at each knot; −∞ where α = 0."""
    with np.errstate(divide="ignore"):
        return np.log(knots.alpha) - np.log(knots.sigma)


def decay(ell: Float[F64, "n"], rate: float) -> Float[F64, "n-1"]:
    """e^(−rate·h) of each step; 0 from l = −∞, and 1 if the rate is 0."""
    return np.exp(-rate * np.diff(ell)) if rate else np.ones(len(ell) - 1)


def lagrange(nodes: Float[F64, "*n k"], m: Float[F64, "*n q"]) -> Float[F64, "*n k q"]:
    """ℓⱼ(m) of (2)."""
    values = np.ones((*nodes.shape, m.shape[-1]))
    for j, other in itertools.permutations(range(nodes.shape[-1]), 2):
        values[..., j, :] *= (m - nodes[..., [other]]) / (nodes[..., [j]] - nodes[..., [other]])
    return values


def integral(values: Float[F64, "*n k q"], length: Float[F64, "*n"]) -> Float[F64, "*n k"]:
    """∫ over an interval, from values at its Gauss points."""
    return 0.5 * length[..., None] * (values @ WEIGHTS)


def gauss_points(low: Float[F64, "*n"], high: Float[F64, "*n"]) -> Float[F64, "*n q"]:
    return low[..., None] + 0.5 * (high - low)[..., None] * (NODES + 1.0)


def looking_back(
    ell: Float[F64, "n_plus_1"], order: int
) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, "m k"]]]:
    """The steps that look back equally far, and the knots that each uses, newest first: at most `order`, all finite.

    Steps from l = −∞ are left out.
    """
    first = int(np.isinf(ell[0]))  # the knot with α = 0, if there is one
    for used in range(1, order + 1):
        steps = np.arange(first, len(ell) - 1)
        steps = steps[np.minimum(steps - first + 1, order) == used]
        yield steps, steps[:, None] - np.arange(used)


def adams_weights(ell: Float[F64, "n_plus_1"], order: int, rate: float = 1.0) -> Float[F64, "n {order}"]:
    """∫ rate·e^(−rate(l'−m))·ℓⱼ(m) dm of each step, over its own knot and up to `order` − 1 before it, newest first."""
    result = np.zeros((len(ell) - 1, order))
    result[:, 0] = 1.0 - decay(ell, rate)  # of first order
    for steps, used in looking_back(ell, order):
        if used.shape[1] > 1:
            low, high = ell[steps], ell[steps + 1]
            m = gauss_points(low, high)
            density = rate * np.exp(-rate * (high[:, None] - m))
            result[steps, : used.shape[1]] = integral(lagrange(ell[used], m) * density[:, None], high - low)
    return result
