"""What is asked of every bijection, in float64: tests of flows and of a user's own share it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from models.flows.bijection import Bijection

# These programs run once: most of their time is the compiler's, and a third of that its optimisations.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def perturbed(params, key, scale=0.3):
    """Every float moved: a layer that begins at zero would make any log-determinant right."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves) + 1)
    moved = [
        leaf + scale * jax.random.normal(k, leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf
        for leaf, k in zip(leaves, keys, strict=False)
    ]
    return jax.tree.unflatten(tree, moved)


def hold(bijection, x, condition=None, scale=0.3, tolerance=1e-8):
    """Asserts all of it for perturbed parameters and data x [B, …] in float64; returns the parameters."""
    key = jax.random.key(1, impl="unsafe_rbg")  # a stack's initialisation compiles in a tenth of threefry's time
    order = jnp.arange(x.shape[0])[::-1]

    # Data-dependent parameters come from more examples than are looked at: the spread of three is often near 0.
    many = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 8), condition)
    start = quick_jit(bijection.init)(key, jax.random.normal(key, (8 * x.shape[0], *x.shape[1:]), x.dtype), many)
    start = perturbed(start, key, scale)
    forward, inverse = quick_jit(bijection.forward), quick_jit(bijection.inverse)

    @quick_jit
    def slogdet(params, x, condition):
        def alone(v, own):
            own = jax.tree.map(lambda leaf: leaf[None], own)
            return bijection.forward(params, v.reshape(1, *x.shape[1:]), own)[0].reshape(-1)

        return jnp.linalg.slogdet(jax.vmap(jax.jacfwd(alone))(x.reshape(x.shape[0], -1), condition))[1]

    z, logdet = forward(start, x, condition)
    back, minus = inverse(start, z, condition)
    some = z + 0.1 * jax.random.normal(jax.random.key(2), z.shape, z.dtype)
    there, some_logdet = inverse(start, some, condition)
    again = forward(start, there, condition)
    permuted = forward(start, x[order], jax.tree.map(lambda leaf: leaf[order], condition))
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)  # noqa: E731
    assert z.dtype == logdet.dtype == x.dtype
    assert logdet.shape == x.shape[:1]
    near(logdet, slogdet(start, x, condition))
    near(back, x)
    near(minus, -logdet)
    near(again[0], some)
    near(again[1], -some_logdet)
    near(permuted[0], z[order])
    near(permuted[1], logdet[order])
    for run, a, (b, change) in ((forward, x, (z, logdet)), (inverse, z, (back, minus))):
        # What its neighbours are must not matter; the whole batch is the first example, so that no domain is left.
        among, own = run(start, jnp.broadcast_to(a[:1], a.shape), condition)
        near(among[:1], b[:1])
        near(own[:1], change[:1])
    if type(bijection).observe is not Bijection.observe:  # what a loss and a metric call
        seen = quick_jit(bijection.observe)(start, x, condition)
        near(seen[0], z)
        near(seen[1], logdet)
    if type(bijection).pull is not Bijection.pull:
        near(quick_jit(bijection.pull)(start, z, condition), x)
    return start
