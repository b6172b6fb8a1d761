"""Exact weights of exponential integrators, on the host in float64.

With l = log(α/σ), half the log-SNR, and D as a function of l along the solution, the probability-flow ODE (η = 0) and
the reverse SDE (η = 1) read, from knot (α, σ, l) to (α', σ', l'), h = l' − l:

    (1)  x' = (σ'/σ)·e^(−ηh)·x + α'·∫_l^l' (1+η)·e^(−(1+η)(l'−m))·D(m) dm + σ'·√(1 − e^(−2ηh))·z
                                                              DPM-Solver++, 2211.01095
    (2)  D(m) ≈ Σⱼ ℓⱼ(m)·D(lⱼ),  ℓⱼ the Lagrange polynomials of the knots lⱼ

so that the weight of D(lⱼ) is α' times ∫ (1+η)e^(−(1+η)(l'−m))·ℓⱼ(m) dm. A knot with α = 0 has l = −∞: a step from it
is of first order, and none of the later ones looks back to it.
"""

import numpy as np
from jaxtyping import Float

from paths.grids import Knots

F64 = np.ndarray
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)  # exact to rounding for steps of up to 10 nats of l


def half_log_snr(knots: Knots) -> Float[F64, "n"]:
    """l at each knot; −∞ where α = 0."""
    with np.errstate(divide="ignore"):
        return np.log(knots.alpha) - np.log(knots.sigma)


def decay(ell: Float[F64, "n"], rate: float) -> Float[F64, "n-1"]:
    """e^(−rate·h) of each step; 0 from l = −∞, and 1 if the rate is 0."""
    return np.exp(-rate * np.diff(ell)) if rate else np.ones(len(ell) - 1)


def lagrange(nodes: Float[F64, " k"], m: Float[F64, " q"]) -> Float[F64, "k q"]:
    """ℓⱼ(m) of (2)."""
    values = np.ones((len(nodes), len(m)))
    for j, at in enumerate(nodes):
        for other in np.delete(nodes, j):
            values[j] *= (m - other) / (at - other)
    return values


def integral(values: Float[F64, "k q"], length: float) -> Float[F64, " k"]:
    """∫ over an interval, from values at its Gauss points."""
    return values @ (0.5 * length * WEIGHTS)


def gauss_points(low: float, high: float) -> Float[F64, " q"]:
    return low + 0.5 * (high - low) * (NODES + 1.0)


def adams_weights(ell: Float[F64, "n_plus_1"], order: int, rate: float = 1.0) -> Float[F64, "n {order}"]:
    """∫ rate·e^(−rate(l'−m))·ℓⱼ(m) dm of each step, over its own knot and up to `order` − 1 before it, newest first."""
    result = np.zeros((len(ell) - 1, order))
    for i in range(len(ell) - 1):
        nodes = ell[max(0, i - order + 1) : i + 1][::-1]
        nodes = nodes[np.isfinite(nodes)]
        if len(nodes) < 2:
            result[i, 0] = 1.0 - np.exp(-rate * (ell[i + 1] - ell[i]))
            continue
        m = gauss_points(ell[i], ell[i + 1])
        density = rate * np.exp(-rate * (ell[i + 1] - m))
        result[i, : len(nodes)] = integral(lagrange(nodes, m) * density, ell[i + 1] - ell[i])
    return result
