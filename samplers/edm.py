"""EDM's stochastic sampler (Karras et al. 2206.00364, alg. 2): churn, then Heun in σ/α, on any path.

With ρ = σ/α and z ~ N(0, I), from ρᵢ to ρᵢ₊₁:

    (1)  ρ̂ = ρ(1 + γ),  γ = min(S_churn/N, √2 − 1) if S_min ≤ ρ ≤ S_max, else 0
    (2)  x̂/α̂ = x/α + √(ρ̂² − ρ²)·S_noise·z
    (3)  d = ε̂(x̂, ρ̂);  x̃/α' = x̂/α̂ + (ρ' − ρ̂)d
    (4)  x'/α' = x̃/α' + (ρ' − ρ̂)/2·(ε̂(x̃, ρ') − d)

S_churn = 0, the default, is deterministic. ρ̂ is held within the path's range. From α = 0, where ρ = ∞, the step is (3)
alone, which is DDIM's. The last step, from the last noisy level onto data, is not churned, whatever S_min is.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.singlestep import Calls, Singlestep, at, ends, noise_estimate, terms


@dataclass(frozen=True, kw_only=True)
class EDM(Singlestep):
    """EDM's Heun: order 2 (weak with churn), two network calls a step, and so 2N − 1 for N steps."""

    s_churn: float = 0.0  # amount of noise put back over the whole solve; the paper's up to 80
    s_min: float = 0.0  # lowest σ/α with churn
    s_max: float = float("inf")  # highest σ/α with churn
    s_noise: float = 1.0  # standard deviation of the noise put back, slightly above 1 in the paper

    def __post_init__(self) -> None:
        if self.s_churn < 0 or self.s_noise < 0:
            raise ValueError(f"s_churn={self.s_churn} and s_noise={self.s_noise} must not be negative")

    @property
    def stated_order(self) -> int:
        return 2

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    @property
    def calls_per_step(self) -> int:
        return 2

    def calls(self, path: Path, knots: Knots) -> Calls:
        x, (D1, D2), noises = terms(knots.steps, calls=2, noises=int(self.stochastic))
        here, there = ends(knots)
        with np.errstate(divide="ignore"):
            rho, rho_next = here.sigma / here.alpha, there.sigma / there.alpha
        if self.stochastic:
            # N counts the step onto data, too, which has no row.
            share = min(self.s_churn / (knots.steps + 1), np.sqrt(2.0) - 1.0)
            churned = (rho >= self.s_min) & (rho <= self.s_max) & np.isfinite(rho)
            highest = np.exp(-0.5 * path.log_snr(path.t_max))
            rho_hat = np.where(churned, np.minimum(rho * (1.0 + share), np.maximum(rho, highest)), rho)
            raised = at(path, np.asarray(path.time_of_log_snr(-2.0 * np.log(rho_hat))))
            added = np.sqrt(np.where(churned, rho_hat**2 - np.where(churned, rho, 0.0) ** 2, 0.0))
            scale = np.where(churned, raised.alpha / np.where(churned, here.alpha, 1.0), 1.0)
            here = type(here)(*(np.where(churned, new, old) for new, old in zip(raised, here, strict=True)))
            x, rho = scale * x + here.alpha * added * self.s_noise * noises[0], rho_hat
        d = noise_estimate(x, D1, here)
        y = there.alpha * D1 + there.sigma * d
        slope = noise_estimate(y, D2, there) - d
        half = np.where(np.isfinite(rho), 0.5 * (rho_next - np.where(np.isfinite(rho), rho, 0.0)), 0.0)
        return Calls(t=[here.t, there.t], y=[x, y], x=y + there.alpha * half * slope)
