"""PLMS, the pseudo linear multistep method (Liu et al. 2202.09778, as latent diffusion runs it).

iPNDM's Adams-Bashforth steps (samplers/ipndm.py, eq. 1-2), but the first step is a pseudo improved Euler step:

    (1)  x̃ = transfer(x, ε̂(x, t));   x' = transfer(x, (ε̂(x, t) + ε̂(x̃, t'))/2)

It costs one call more: N steps are N + 1 network calls. In the table it is a row of its own at t', which adds half of
the difference ε̂(x̃, t') − ε̂(x, t) to x̃; later rows pass over what the network said there.
"""

from dataclasses import dataclass

import numpy as np

from paths.grids import Knots
from paths.path import Path
from samplers.deis import eps_table
from samplers.ipndm import ADAMS_BASHFORTH, rho_steps
from samplers.multistep import Multistep, Table


@dataclass(frozen=True, kw_only=True)
class PLMS(Multistep):
    """PLMS with four estimates: N + 1 network calls for N steps."""

    @property
    def stated_order(self) -> int:
        return 2

    def network_calls(self, steps: int) -> int:
        return steps + 1 if steps > 1 else 1

    def table(self, path: Path, knots: Knots) -> Table:
        change = rho_steps(knots)
        C = np.zeros((knots.steps, 5))
        C[0, 0] = change[0]
        blind = int(knots.alpha[0] == 0.0)  # then there is no Euler step to improve, and nothing of ε to look back to
        for i in range(1, knots.steps):
            weights = ADAMS_BASHFORTH[min(i - blind, 3)] * change[i]
            # Newest first: what was said at knots i, i−1, …, 1, then x̃'s at knot 1, then knot 0's.
            columns = np.arange(len(weights))
            C[i, columns + (columns >= i)] = weights
        table = eps_table(knots, C)
        assert table.P is not None
        assert table.Q is not None
        # The extra row: knot 1's own P and Q, and from x̃ on half of C₀ once forth and once back.
        half = 0.5 * knots.alpha[1] * change[0]
        P1, Q1 = 1.0 / knots.sigma[1], -knots.alpha[1] / knots.sigma[1]
        return Table(
            A=np.insert(table.A, 1, 1.0),
            B=np.insert(table.B, 1, half * np.asarray([1.0, -1.0, 0.0, 0.0, 0.0]), axis=0),
            S=np.zeros(knots.steps + 1),
            P=np.insert(table.P, 1, P1),
            Q=np.insert(table.Q, 1, Q1),
            t=np.insert(knots.t[:-1], 1, knots.t[1]),
        )
