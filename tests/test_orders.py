"""Every solver's order of convergence, against trajectories and moments that are known exactly."""

import itertools

import numpy as np
import pytest

from paths.grids import Uniform
from paths.schedules import VP
from samplers import measure
from samplers.catalogue import solvers
from samplers.check import MEASURED, PATHS
from samplers.ddim import DDIM
from samplers.ddpm import DDPM
from samplers.deis import DEIS
from samplers.dpmpp import DPMpp1S, DPMpp3M
from samplers.edm import EDM
from samplers.exponential import adams_weights, half_log_snr
from samplers.ipndm import IPNDM
from samplers.multistep import Table
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.reverse_sde import ReverseSDE
from samplers.sde_dpmpp import SDEDPMpp2M, SDEDPMpp3M
from samplers.unip import UniP
from samplers.unipc import UniPC
from tests.conftest import tiers

DEFAULTS = [cls() for name, cls in solvers().items() if name not in ("pc", "langevin", "dopri5", "tsit5")]
VARIANTS = [
    *(DEIS(order=n) for n in (1, 2)),
    DEIS(order=3, polynomial="rho"),
    *(UniP(order=n) for n in (1, 2)),
    *(UniPC(order=n) for n in (1, 3)),
    UniPC(order=2, variant="bh1"),
    IPNDM(order=1),
    DDIM(eta=0.5),
    DDIM(eta=1.0, hat=True),
    DDPM(variance="beta"),
    SDEDPMpp2M(eta=0.5),
    SDEDPMpp3M(eta=0.0),
    EDM(s_churn=10.0),
    ReverseSDE(diffusion="sigma"),
    ReverseSDE(strength=0.5),
    ReverseDiffusion(strength=0.0),
    ReverseDiffusion(strength=0.5),
]
FIRST = [(solver, "rectified") for solver in (DEIS(order=2), UniPC(order=3), DDIM(eta=0.5), EDM(s_churn=10.0))]


@pytest.mark.parametrize(
    ("solver", "path"),
    tiers(itertools.product(DEFAULTS, MEASURED), first=lambda solver, path: path == "vp")
    + tiers(itertools.product(VARIANTS, ("vp", "rectified")), first=lambda solver, path: (solver, path) in FIRST),
    ids=str,
)
def test_the_measured_order_is_the_stated_one(solver, path):
    """Within 0.2, where doubling the steps changes the slope least."""
    found = measure.order(solver, PATHS[path])
    assert found.order == pytest.approx(solver.stated_order, abs=0.2), found


def test_the_published_third_term_of_dpmpp_3m_costs_an_order():
    """Half of the parabola's last term, as the public codes have it: order 2. Ours: order 3."""

    class Public(DPMpp3M):
        def table(self, path, knots):
            A, B, S, *_ = super().table(path, knots)
            ell = half_log_snr(knots)
            h = np.diff(ell)
            for i in range(2, len(h)):
                r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
                phi3 = ((np.expm1(-h[i]) / h[i] + 1) / h[i]) - 0.5
                # D₂ = ((D₀−D₋₁)/r₀ − (D₋₁−D₋₂)/r₁)/(r₀+r₁), of which the exact integral takes −2φ₃ and they take −φ₃
                D2 = np.asarray([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
                B[i] += knots.alpha[i + 1] * phi3 * D2
            return Table(A, B, S)

    assert measure.order(Public(), VP()).order == pytest.approx(2.0, abs=0.2)
    assert measure.strong_error(Public(), VP(), 160) > 3 * measure.strong_error(DPMpp3M(), VP(), 160)


def table(solver, path="vp", steps=20):
    return solver.table(PATHS[path], measure.stretch(PATHS[path], steps))


@pytest.mark.parametrize("path", PATHS)
def test_solvers_that_are_one(path):
    """Identities of the papers, as tables: 1S = DEIS-1 = UniP-1 = DDIM; UniP-3 = 3M; η = 0 is the ODE's; σ̂ is β."""
    knots = measure.stretch(PATHS[path], 20)
    ddim = table(DDIM(), path)
    for other in (DPMpp1S(), UniP(order=1), SDEDPMpp3M(eta=0.0)):
        theirs = table(other, path)
        np.testing.assert_allclose(theirs.A, ddim.A, rtol=1e-10)
        if theirs.B.shape[1] == 1:
            np.testing.assert_allclose(theirs.B, ddim.B, rtol=1e-9)
    deis = table(DEIS(order=1), path)  # in ε: x' = A·x + B·(P·x + Q·x̂₀)
    np.testing.assert_allclose(deis.A + deis.B[:, 0] * deis.P, ddim.A, rtol=1e-8)
    np.testing.assert_allclose(deis.B[:, 0] * deis.Q, ddim.B[:, 0], rtol=1e-8)
    np.testing.assert_allclose(table(UniP(order=3), path).B[2:], table(DPMpp3M(), path).B[2:], rtol=1e-7)
    np.testing.assert_allclose(table(SDEDPMpp3M(eta=0.0), path).B, table(DPMpp3M(), path).B, rtol=1e-12)
    larger, hat = DDPM(variance="beta").table(PATHS[path], knots), table(DDIM(eta=1.0, hat=True), path)
    for mine, theirs in zip(hat[:3], larger[:3], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-9 * knots.sigma[0])
    euler, rectified = solvers()["euler"](), PATHS["rectified"]
    on = Uniform().knots(rectified, 20).noisy
    np.testing.assert_allclose(euler.table(rectified, on).A, DDIM().table(rectified, on).A, rtol=1e-12)  # pyright: ignore


def test_weights_are_exact_for_polynomials_of_their_degree():
    """∫ e^(−(l'−m))·m² dm by hand, on uneven knots."""
    ell = np.asarray([-2.0, -1.1, -0.7, 0.4])
    weights = adams_weights(ell, 3)[2]
    primitive = lambda m: np.exp(m) * (m**2 - 2 * m + 2)  # noqa: E731
    exact = (primitive(0.4) - primitive(-0.7)) * np.exp(-0.4)
    np.testing.assert_allclose(weights @ ell[2::-1] ** 2, exact, rtol=1e-13)
    np.testing.assert_allclose(weights.sum(), 1 - np.exp(-1.1), rtol=1e-13)
