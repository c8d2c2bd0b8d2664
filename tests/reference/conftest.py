"""What the comparisons share: tiny models, made once a session, and the meshes they run on.

Nothing here imports torch before a test asks for a model, so that an environment without it can
collect this folder and skip every file in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from jax.sharding import Mesh

from jaxft.parallel import mesh as meshes

if TYPE_CHECKING:
    from reference_models import TinyModel


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Return a function from a case's name, and a `std` of weights, to its model."""
    import reference_models
    import torch

    # On products this small a second thread does nothing but wait, for long on a busy machine.
    torch.set_num_threads(1)

    @functools.cache
    def model(name: str, **std: float) -> TinyModel:
        return reference_models.make(name, tmp_path_factory.mktemp(name), **std)

    return model


@pytest.fixture(scope="session")
def one_device() -> Mesh:
    return meshes.single_device_mesh()


@pytest.fixture(scope="session")
def four_devices() -> Mesh:
    """Rows over two devices, each product over two."""
    return meshes.make_mesh(2, 1, 2)


@pytest.fixture
def record_property(
    record_property: Callable[[str, object], None],
) -> Callable[[str, object], None]:
    """Record numbers as text, which a process of pytest can send to another."""
    return lambda name, value: record_property(name, str(value))
