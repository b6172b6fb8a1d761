"""One run on many meshes: the same losses, parameters, checkpoints and samples, and less of each on a device."""

import jax
import numpy as np
import pytest

from tests.conftest import tfds_has
from tests.families import FAMILIES, family, run
from training.checkpoint import Store
from training.errors import UserError
from training.mesh import Mesh, by_batch, bytes_a_device, placed, rows_here
from training.plan import Plan

ONE = Mesh(data=1)
MESHES = {
    "data 8": Mesh(data=8),
    "fsdp 8": Mesh(fsdp=8, fsdp_from=64),
    "2 x 2 x 2": Mesh(data=2, fsdp=2, model=2, fsdp_from=64),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_is_the_same_on_every_mesh(tmp_path, name):
    """Losses of 20 steps to 1e-5 in float32, samples of equal keys to 1e-4; a checkpoint is the same bits anywhere."""
    if "omniglot" in name and not tfds_has("omniglot"):
        pytest.skip("omniglot is not prepared; set TFDS_DATA_DIR to where it is")
    plans = {"one": Plan(family(name, ONE)), **{key: Plan(family(name, mesh)) for key, mesh in MESHES.items()}}
    states, losses = {}, {}
    for key, plan in plans.items():
        states[key], losses[key] = run(plan)
    held = {key: bytes_a_device(state) for key, state in states.items()}
    print(name, held)
    for key in MESHES:
        np.testing.assert_allclose(losses[key], losses["one"], rtol=1e-5, err_msg=key)
    assert held["data 8"] == held["one"]
    assert held["fsdp 8"] < 0.35 * held["one"]  # what is left is of fewer than 64 numbers, or divides by no 8
    assert held["fsdp 8"] < held["2 x 2 x 2"] < 0.6 * held["one"]

    for saved in ("one", "fsdp 8", "2 x 2 x 2"):
        store = Store(tmp_path / saved.replace(" ", ""), family(name, ONE).checkpoints)
        store.save(states[saved], {"loss": 0.5})
        store.wait()
        for plan in plans.values():
            found = store.restore(plan.state_like)
            assert found is not None
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(found[0]), jax.device_get(states[saved]))
            assert jax.tree.map(lambda leaf: leaf.sharding, found[0]) == jax.tree.map(
                lambda leaf: leaf.sharding, plan.state_like
            )
        store.close()
    if name.startswith("margin"):
        return
    many = plans["2 x 2 x 2"]
    restored = Store(tmp_path / "one").restore(many.state_like)
    assert restored is not None
    there, here = many.samples(restored[0], 5), plans["one"].samples(states["one"], 5)
    np.testing.assert_allclose(there, here, atol=1e-4)


def test_large_arrays_are_split_along_their_longest_axis_and_named_ones_as_they_are_named():
    mesh = Mesh(data=2, fsdp=2, model=2).build()
    shapes = {
        "kernel": (6, 128, 512),
        "tall": (6, 512, 128),
        "square": (128, 128),
        "odd": (513, 127),
        "small": (8, 8),
        "up": {"kernel": (6, 128, 512), "bias": (6, 512)},
        "down": {"kernel": (512, 128)},
    }
    leaves = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )
    split = {"up/kernel": (None, "model"), "up/bias": ("model",), "down/kernel": ("model", None)}
    found = jax.tree.map(lambda place: tuple(place.spec), placed(leaves, mesh, split, fsdp_from=2**14))
    assert found == {
        "kernel": (None, None, "fsdp"),
        "tall": (None, "fsdp", None),
        "square": (None, "fsdp"),
        "odd": (None, None),
        "small": (None, None),
        "up": {"kernel": (None, "fsdp", "model"), "bias": (None, "model")},
        "down": {"kernel": ("model", "fsdp")},
    }


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (Mesh(fsdp=16), "are 16 devices, but there are 8 devices"),
        (Mesh(data=3, model=3), "mesh.data=3, mesh.fsdp=1, mesh.model=3 are 9 devices"),
        (Mesh(model=5), r"does not divide over the 5 devices of mesh.model"),
        (Mesh(data=1, fsdp=5), "batch_size=16 does not divide over 5 devices"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, message):
    with pytest.raises(UserError, match=message):
        Plan(family("digits_ddpm", mesh))


def test_impossible_meshes_are_refused_by_their_settings():
    for wrong in ({"data": -1}, {"fsdp": 0}, {"model": 0}, {"fsdp_from": 0}):
        with pytest.raises(ValueError, match="="):
            Mesh(**wrong)


def test_what_is_drawn_elsewhere_takes_the_runs_mesh_where_it_fits():
    assert Mesh(data=2, fsdp=4).here() == Mesh(fsdp=4)
    assert Mesh(fsdp=16).here() == Mesh()
    assert Mesh(fsdp=2, model=2).here().build().shape == {"data": 2, "fsdp": 2, "model": 2}


def test_a_process_reads_the_rows_that_its_devices_hold():
    sharding = by_batch(Mesh(data=2, fsdp=2, model=2).build())
    assert rows_here(sharding, 12).tolist() == list(range(12))
