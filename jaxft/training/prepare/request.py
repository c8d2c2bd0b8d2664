"""The request for a run: the recipe, the model that it names, and rows that are not read yet.

`of_recipe` makes the `Request` of `jaxft train`; the Python API makes one from objects in memory.
After that both are prepared and run by the same code.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxft import console
from jaxft.adapters import tables
from jaxft.artifacts import initial
from jaxft.artifacts.initial import Initial
from jaxft.config import LoraConfig, RunConfig
from jaxft.lora import tuning
from jaxft.models.network import Network
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training.prepare import reading
from jaxft.training.prepare.reading import OpenRows
from jaxft.weights import base
from jaxft.weights.base import Base
from jaxft.weights.places import new_tokens, source


class InMemory(NamedTuple):
    """A tuned model in memory from which training continues.

    Attributes:
        lora: The adapter's config; its ranks may have been measured.
        leaves: The trained leaves, the initial A0 and B0 of adapters, and their scaling and
            dropout.
    """

    lora: LoraConfig
    leaves: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """A request for a run.

    Attributes:
        config: The recipe.
        base: The base model, with its mesh, dtype and quantization.
        network: The base model's network, with its trained parts. If ranks will be measured, it has
            the ranks with which measuring begins.
        tokenizer: The tokenizer of the model; `None` if all rows are tokens.
        rows: The open sources of the rows.
        initial: The adapter in a folder from which training continues; `None` for none.
        tuned: The tuned model in memory from which training continues; `None` for a fresh start.
    """

    config: RunConfig
    base: Base
    network: Network
    tokenizer: Any
    rows: OpenRows
    initial: Initial | None
    tuned: InMemory | None

    @property
    def mesh(self) -> Mesh:
        """The mesh of devices."""
        assert isinstance(self.base.mesh, Mesh), "a run has devices"
        return self.base.mesh


def of_recipe(config: RunConfig) -> Request:
    """Find the rows and the model of a recipe, and build the network with its trained parts.

    Raises:
        JaxftError: If something is wrong with the recipe, the devices, the model or the adapter
            from which training continues.
    """
    devices.check()
    console.note(f"Devices: {devices.describe()}")
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    rows = reading.open_recipe(config.data)
    found = source.resolve(config.model.path, config.model.revision, console.note)
    console.note(f"Base model: {found.name} ({found.origin})")
    found = new_tokens.with_new_tokens(found, config.model.new_tokens, console.note)
    begun = None
    if config.lora.init_from is not None:
        begun = initial.read(Path(config.lora.init_from), config.lora, found)
        found = begun.source
    family, spec = base.read_spec(found)
    network = tuning.tuned_network(config.tuning, config.lora, family, spec)
    tables.refuse_untrained(found, family, network, config.tuning.method)
    dtype = base.resolve_dtype(config.model.dtype)
    return Request(
        config=config,
        base=Base(found, family, spec, mesh, dtype, config.model.quantization),
        network=network,
        tokenizer=found.tokenizer(),
        rows=rows,
        initial=begun,
        tuned=None,
    )
