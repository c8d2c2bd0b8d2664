"""The device mesh: three named axes, `data`, `fsdp` and `tensor`, present on every machine.

A laptop is the 1x1x1 mesh, so there is one code path. Batch rows are divided over `data` and
`fsdp` together, weights over `fsdp` and `tensor`.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxft.errors import DeviceError

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # the mesh axes that divide batch rows


def make_mesh(
    data: int | str, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Build the mesh over all devices, or over the ones given.

    Args:
        data: Number of data-parallel replicas, or "auto" for as many as the devices allow.
        fsdp: Number of devices that the frozen weights are divided over.
        tensor: Number of devices that each matrix product is divided over.
        devices: The devices to use; `None` means all that JAX sees.

    Raises:
        DeviceError: If the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    rest = fsdp * tensor
    if data == "auto":
        data = max(len(devices) // rest, 1)
    if not isinstance(data, int) or data * rest != len(devices):
        raise DeviceError(
            f"The mesh data={data} x fsdp={fsdp} x tensor={tensor} does not fit "
            f"{len(devices)} devices.",
            "Set mesh.data, mesh.fsdp and mesh.tensor so that their product is the number of "
            "devices, or leave mesh.data=auto.",
        )
    # Auto, because the default axis type became Explicit, under which `embed[tokens]` raises.
    grid = np.array(devices).reshape(data, fsdp, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def single_device_mesh(device: jax.Device | None = None) -> Mesh:
    """Return the 1x1x1 mesh over `device`, or over JAX's first device."""
    return make_mesh(1, 1, 1, [device or jax.devices()[0]])


def platform(mesh: Mesh) -> str:
    """Return JAX's name of the platform of the mesh's devices, such as "cpu" or "gpu"."""
    found: str = mesh.devices.flat[0].platform
    return found


def row_shards(mesh: Mesh) -> int:
    """Return the number of contiguous pieces into which batch rows are divided."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding under which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding that divides dimension `axis`, the batch rows, over the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, ROW_AXES))
