"""The mesh has three axes on every machine, and sizes that fit."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxft.errors import DeviceError
from jaxft.parallel import mesh as meshes


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (("auto", 1, 1), (4, 1, 1)),
        (("auto", 2, 1), (2, 2, 1)),
        (("auto", 2, 2), (1, 2, 2)),
        ((2, 1, 2), (2, 1, 2)),
    ],
)
def test_auto_takes_the_devices_that_the_others_leave(sizes, shape):
    mesh = meshes.make_mesh(*sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("sizes", [(3, 1, 1), ("auto", 3, 1), (4, 2, 1), ("auto", 8, 1)])
def test_sizes_that_do_not_fit_raise_naming_them(sizes):
    with pytest.raises(DeviceError, match=f"fsdp={sizes[1]} .* does not fit 4 devices"):
        meshes.make_mesh(*sizes)


def test_one_device_is_a_mesh_like_any_other():
    mesh = meshes.single_device_mesh()
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert meshes.single_device_mesh(jax.devices()[2]).devices.item() == jax.devices()[2]


def test_axes_are_left_to_the_compiler():
    # Under explicit axes, which are jax's default, an embedding lookup raises.
    assert set(meshes.make_mesh("auto", 1, 1).axis_types) == {AxisType.Auto}


def test_rows_are_divided_over_data_and_fsdp_together():
    mesh = meshes.make_mesh(2, 2, 1)
    assert meshes.row_shards(mesh) == 4
    assert meshes.row_shards(meshes.make_mesh(1, 2, 2)) == 2
    array = jax.device_put(np.zeros((3, 8, 5)), meshes.rows(mesh, axis=1))
    assert {shard.data.shape for shard in array.addressable_shards} == {(3, 2, 5)}
    whole = jax.device_put(np.zeros((3, 8, 5)), meshes.replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(3, 8, 5)}
