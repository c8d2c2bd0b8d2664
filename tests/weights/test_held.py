"""What a base says that its leaves will be, they are; and a region of a leaf is read alone."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import small_models

from jaxft import config as configs
from jaxft import tree as trees
from jaxft.lora import targets
from jaxft.models.network import base_network
from jaxft.parallel import mesh as meshes
from jaxft.weights import base
from jaxft.weights.base import Base
from jaxft.weights.formats import regions
from jaxft.weights.places.source import Source


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    config = {**small_models.LLAMA, "hidden_size": 32, "vocab_size": 260}
    folder = small_models.write(tmp_path_factory.mktemp("held") / "model", config)
    return Source("tiny", folder, None, None, "local folder")


def held(source, shape, quantization) -> Base:
    mesh = meshes.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    return Base(source, *base.read_spec(source), mesh, "bfloat16", quantization)


@pytest.mark.parametrize("quantization", [None, "nf4", "int4", "int8", "fp8"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (1, 4, 1)])
@pytest.mark.parametrize("is_adapted", [False, True], ids=["bare", "adapted"])
def test_the_abstract_tree_is_that_of_what_is_loaded(source, quantization, shape, is_adapted):
    here = held(source, shape, quantization)
    network = base_network(here.spec)
    if is_adapted:
        lora = configs.LoraConfig(r=2, modules_to_save=["lm_head"], layers_to_transform=[1])
        network = targets.adapted_network(lora, here.family, here.spec)
    abstract, loaded = here.abstract(network), here.load(network)
    assert jax.tree.structure(abstract) == jax.tree.structure(loaded)
    named = zip(jax.tree.leaves_with_path(abstract), jax.tree.leaves(loaded), strict=True)
    for (path, said), found in named:
        assert (said.shape, said.dtype) == (found.shape, found.dtype), path
        assert said.sharding.is_equivalent_to(found.sharding, found.ndim), path
    assert trees.num_bytes(abstract) == trees.num_bytes(loaded)


def test_each_devices_part_of_a_leaf_reads_its_own_bytes(source, monkeypatch):
    here = held(source, (1, 4, 1), None)
    network, sizes, read_into = base_network(here.spec), [], regions._read_into

    def counted(opened, memory):
        sizes.append(len(memory))
        read_into(opened, memory)

    monkeypatch.setattr(regions, "_read_into", counted)
    loaded, num_divided = trees.flatten(here.load(network)), 0
    for path, leaf in loaded.items():
        for shard in leaf.addressable_shards:
            sizes.clear()
            part = here.read(network, path, regions.explicit(shard.index, leaf.shape))
            share = 4 if "fsdp" in leaf.sharding.spec else 1
            assert sum(sizes) == 4 * leaf.size // share  # the file is float32
            np.testing.assert_array_equal(part.astype(leaf.dtype), shard.data)
            num_divided += share == 4
    assert num_divided > 8 * 4 - 1
