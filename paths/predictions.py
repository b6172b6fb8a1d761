"""What the network says, as one row a face, instead of a converter for each pair.

    (1)  network call        F = net(c_in·xₜ, c_noise)
    (2)  the face's target   y = p·x₀ + q·ε
    (3)  data estimate       x̂₀ = c_skip·xₜ + c_out·F,  c_skip = q/(αq − σp),  c_out = −σ/(αq − σp)
    (4)  noise estimate      ε̂  = (xₜ − α·x̂₀)/σ

    face       p          q          so that                       source
    x0         1          0          F = x₀                        DDPM, 2006.11239 §3.2
    eps        0          1          F = ε                         DDPM, 2006.11239 eq. 14
    v          −σ         α          F = αε − σx₀                  2202.00512 app. D
    velocity   α̇          σ̇          F = dx/dt (rectified: ε − x₀)   2209.03003 eq. 1, 2210.02747 eq. 14
    score      0          −1/σ       F = ∇log p(xₜ|x₀)             2011.13456 eq. 7
    edm        (1−α·c_skip)/c_out, −σ·c_skip/c_out, unit variance in and out   2206.00364 table 1

EDM's row is stated for α = 1; here it is read on xₜ/α at noise level σ/α, which is the same network on any path.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from paths.path import Path, Times, namespace

Prediction = Literal["eps", "x0", "v", "velocity", "score", "edm"]

# Faces whose x̂₀ divides by α (or whose c_noise is log σ/α): they cannot be asked at zero terminal SNR.
NEEDS_SIGNAL: frozenset[str] = frozenset({"eps", "score", "edm"})
LOWEST_LOG_SNR = -13.8  # α/σ ≈ 1e-3: below it float32 (x − σε)/α has no correct digits worth having


@dataclass(frozen=True)
class Face:
    """One row of the table at given times; every field has the shape of t."""

    c_in: Any
    c_noise: Any
    c_skip: Any
    c_out: Any
    p: Any
    q: Any


def face(predicts: str, path: Path, t: Times, sigma_data: float = 0.5) -> Face:
    """The row of `predicts` on `path` at times t.

    Args:
      predicts: which face, a name from the table above.
      path: supplies α, σ and, for `velocity`, their derivatives.
      t: times, any shape.
      sigma_data: standard deviation of the data, used by `edm` alone.

    Raises:
      ValueError: the face is unknown.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    zero, one = namespace(t).zeros_like(alpha), namespace(t).ones_like(alpha)
    if predicts == "edm":
        return _edm(path, t, sigma_data)
    if predicts == "score":  # q = −1/σ, written so that σ = 0 divides nothing
        return Face(path.input_scale(t), 1000.0 * t, one / alpha, sigma**2 / alpha, zero, -one / sigma)
    if predicts == "x0":
        p, q = one, zero
    elif predicts == "eps":
        p, q = zero, one
    elif predicts == "v":
        p, q = -sigma, alpha
    elif predicts == "velocity":
        p, q = path.derivatives(t)
    else:
        raise ValueError(f"unknown prediction {predicts!r}; allowed are {', '.join(get_args(Prediction))}")
    determinant = alpha * q - sigma * p
    return Face(path.input_scale(t), 1000.0 * t, q / determinant, -sigma / determinant, p, q)


def _edm(path: Path, t: Times, sigma_data: float) -> Face:
    alpha, sigma = path.alpha(t), path.sigma(t)
    total = sigma**2 + (alpha * sigma_data) ** 2
    root = namespace(t).sqrt(total)
    c_skip, c_out = alpha * sigma_data**2 / total, sigma * sigma_data / root
    return Face(
        c_in=1.0 / root,
        c_noise=-path.log_snr(t) / 8.0,  # ln(σ/α)/4
        c_skip=c_skip,
        c_out=c_out,
        p=alpha * 0 + sigma / (sigma_data * root),  # (1 − α·c_skip)/c_out
        q=-alpha * sigma_data / root,
    )


def latest_time(predicts: str, path: Path) -> float:
    """The largest t at which this face gives x̂₀: the path's own t_max, or where log-SNR falls to −13.8."""
    if predicts in NEEDS_SIGNAL and path.log_snr(path.t_max) < LOWEST_LOG_SNR:
        return float(path.time_of_log_snr(LOWEST_LOG_SNR))
    return path.t_max
