"""Model handles: what `from_pretrained` returns, called, generated from and saved like a model.

A handle is lazy. It knows where the weights are; they are read when a `Trainer` or a first call
says on which devices they are wanted. It owns no computation: it binds arguments that people
know to `models.forward`, `generation.decoding` and `lora.peft_format`.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import config as configs
from jaxft import console
from jaxft import tree as trees
from jaxft.errors import AdapterError, ConfigError, DataError
from jaxft.generation.decoding import Decoder
from jaxft.generation.sampling import Sampling
from jaxft.lora import conversion, mask, peft_format, starts, targets
from jaxft.models import forward
from jaxft.models.bind import abstract_tree
from jaxft.models.network import Network, base_network, is_adapter_leaf
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.weights import base, source
from jaxft.weights.source import Source


class ModelOutput(NamedTuple):
    """What a call returns.

    Attributes:
        logits: float32 [b t v].
    """

    logits: jax.Array


class CausalLM:
    """A base model, not read until it is needed.

    Attributes:
        source: Where it is.
        family: Its family.
        network: It, and what is trained of it.
        dtype: dtype of its weights and of activations.
    """

    def __init__(self, found: Source, network: Network | None, dtype: str) -> None:
        """Describe the model; `network` is the base's own unless adapters are put on."""
        self.source, self.dtype = found, dtype
        self.family, spec = base.read_spec(found)
        self.network = base_network(spec) if network is None else network
        self._tree: trees.Tree | None = None
        self._mesh: Mesh | None = None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder."""
        return self.source.tokenizer()

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return self.source.config()

    def tree(self, mesh: Mesh | None = None) -> trees.Tree:
        """Return all leaves, read on first use and moved if they lie on another mesh.

        Args:
            mesh: Where they are wanted; `None` for where they are, or one device.

        Raises:
            WeightsError: If the weights cannot be read.
        """
        mesh = mesh or self._mesh or meshes.single_device_mesh()
        if self._tree is None:
            self._tree = self._first_tree(mesh)
        elif mesh != self._mesh:
            self._tree = jax.device_put(self._tree, rules.shardings(self._tree, mesh))
        self._mesh = mesh
        return self._tree

    def _first_tree(self, mesh: Mesh) -> trees.Tree:
        return base.load_base(
            self.source, self.family, self.network, dtype=self.dtype, mesh=mesh, quantization=None
        )

    def __call__(
        self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None
    ) -> ModelOutput:
        """Return the logits of rows.

        Args:
            input_ids: int [b t].
            attention_mask: 1 for tokens and 0 for padding, on either side; `None` for no padding.
            position_ids: int [b t]; `None` counts the tokens of each row.

        Raises:
            DataError: If a token or a position is none of the model's.
        """
        ids, seen = self._checked(input_ids, attention_mask)
        if position_ids is None:
            position_ids = np.maximum(np.cumsum(seen, axis=1) - 1, 0)
        positions = np.asarray(position_ids, np.int32)
        _check_below(positions, self.network.spec.max_tokens, "position")
        tree = self.tree()
        assert self._mesh is not None
        # As many rows as the mesh divides them into, or a multiple: the last one repeated.
        missing = -len(ids) % meshes.row_shards(self._mesh)
        padded = (np.pad(a, ((0, missing), (0, 0)), mode="edge") for a in (ids, seen, positions))
        return ModelOutput(self._logits(tree, *padded)[: len(ids)])

    def _checked(self, input_ids: Any, attention_mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and mask, int32 [b t].

        Raises:
            DataError: If they are no rows of tokens of this model.
        """
        ids = np.asarray(input_ids, np.int32)
        seen = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
        if ids.ndim != 2 or seen.shape != ids.shape:
            raise DataError(
                f"input_ids has the shape {ids.shape}, attention_mask {seen.shape}.",
                "Expected rows of tokens, [b t], and a mask of the same shape or none.",
            )
        _check_below(ids, self.network.spec.vocab_size, "token")
        return ids, seen

    @functools.cached_property
    def _logits(self) -> Any:
        network, dtype = self.network, self.dtype

        def logits(tree: Any, ids: Any, segments: Any, positions: Any) -> jax.Array:
            assert self._mesh is not None
            mesh = self._mesh
            return forward.logits(network, tree, ids, segments, positions, mesh=mesh, dtype=dtype)

        return jax.jit(logits)

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        max_new_tokens: int = 20,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Return the rows with their continuations, int32 [b, t + new tokens].

        A row that ends early is filled up with its end token.

        Args:
            input_ids: int [b t].
            attention_mask: 0 for padding, on the left; `None` for no padding.
            max_new_tokens: The most that a row gets.
            do_sample: Draw tokens; otherwise the likeliest is taken.
            temperature: Of the draw.
            top_k: The draw is among this many; 0 for all.
            top_p: The draw is among the likeliest tokens of this share together.
            seed: Of the draw.

        Raises:
            DataError: If a token is none of the model's, or a row has none or too many.
        """
        ids, seen = self._checked(input_ids, attention_mask)
        prompts = [row[kept == 1].tolist() for row, kept in zip(ids, seen, strict=True)]
        tree = self.tree()
        assert self._mesh is not None
        decoder = Decoder(
            self.network,
            stop_ids=base.read_stop_ids(self.source, self.tokenizer),
            mesh=self._mesh,
            dtype=self.dtype,
        )
        how = Sampling(temperature if do_sample else 0.0, top_k, top_p, seed)
        steps = decoder.steps(tree, prompts, max_new_tokens=max_new_tokens, how=how)
        return np.concatenate([ids, np.stack(list(steps), axis=1)], axis=1)


def _check_below(numbers: np.ndarray, limit: int | None, what: str) -> None:
    """Raise unless the model has a row for every number; JAX would read the nearest one.

    Raises:
        DataError: If it has none.
    """
    if limit is not None and numbers.size and not 0 <= numbers.min() <= numbers.max() < limit:
        wrong = numbers.min() if numbers.min() < 0 else numbers.max()
        raise DataError(f"There is a {what} {wrong}.", f"The model's go from 0 to {limit - 1}.")


class PeftModel(CausalLM):
    """A base model with an adapter.

    Attributes:
        base: The model that the adapter is on.
        lora: What the adapter is.
        is_trainable: Whether a `Trainer` may train it.
    """

    def __init__(
        self,
        model: CausalLM,
        lora: configs.LoraConfig,
        trained: Mapping[str, Any] | None,
        *,
        is_trainable: bool,
    ) -> None:
        """Put an adapter on a model: a fresh one, or the leaves of one that was read."""
        if isinstance(model, PeftModel):
            raise AdapterError(
                "The model has an adapter already.", "Put the new one on the base model instead."
            )
        family, spec = base.read_spec(model.source)
        network = targets.adapted_network(lora, family, spec)
        super().__init__(model.source, network, model.dtype)
        self.base, self.lora, self.is_trainable = model, lora, is_trainable
        self._start, self._seed = trained, 0

    @classmethod
    def from_pretrained(
        cls, model: CausalLM, adapter: str | Path, is_trainable: bool = False
    ) -> "PeftModel":
        """Read an adapter folder in PEFT's format and put it on `model`.

        Raises:
            AdapterError: If it cannot be read, or is not for this model.
        """
        folder = Path(adapter)
        content, tensors = peft_format.read_adapter(folder)
        lora = peft_format.read_lora_config(content, folder)
        self = cls(model, lora, None, is_trainable=is_trainable)
        self._start = peft_format.from_tensors(tensors, self.family, self.network, folder)
        return self

    def _first_tree(self, mesh: Mesh) -> trees.Tree:
        own = super()._first_tree(mesh)
        if self._start is None:
            return self._begun(own, mesh)
        return self._with(own, self._start, mesh)

    def _with(self, tree: trees.Tree, trained: Mapping[str, Any], mesh: Mesh) -> trees.Tree:
        placed = jax.device_put(trained, rules.shardings(trained, mesh))
        return trees.unflatten({**trees.flatten(tree), **trees.flatten(placed)})

    def start_from(self, seed: int) -> None:
        """Draw the adapter from a seed, unless it was read from a folder or trained."""
        self._seed = seed
        if self._start is None and self._tree is not None and self._mesh is not None:
            adapters = trees.map_with_path(lambda path, _: is_adapter_leaf(path), self._tree)
            own = starts.without(trees.partition(self._tree, adapters)[1])
            self._tree = self._begun(own, self._mesh)

    def _begun(self, own: trees.Tree, mesh: Mesh) -> trees.Tree:
        kind, seed = self.lora.init_lora_weights, self._seed
        return starts.with_adapters(own, self.family, self.network, kind=kind, seed=seed, mesh=mesh)

    def trained_leaves(self) -> trees.Tree:
        """Return the leaves that are trained, adapters and others."""
        tree = self.tree()
        return trees.partition(tree, mask.trainable_mask(self.network, tree))[0]

    def set_trained_leaves(self, trained: trees.Tree) -> None:
        """Replace the leaves that are trained, and what adapters began as if it comes with them."""
        tree = self.tree()
        assert self._mesh is not None
        self._start, self._tree = trained, self._with(tree, trained, self._mesh)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the number of trained parameters, and of all."""
        leaves = abstract_tree(self.network)
        trained, frozen = trees.partition(leaves, mask.trainable_mask(self.network, leaves))
        count = trees.num_parameters(trained)
        return count, count + trees.num_parameters(starts.without(frozen))

    def print_trainable_parameters(self) -> None:
        """Say how many parameters are trained."""
        trained, total = self.get_nb_trainable_parameters()
        console.result(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's format."""
        content, tensors = conversion.to_peft(
            self.lora,
            self.family,
            self.network,
            self.tree(),
            base_model=self.source.name,
            revision=self.source.revision,
        )
        peft_format.save_adapter(Path(folder), tensors, content)


class AutoModelForCausalLM:
    """Finds models; what it returns is a `CausalLM`."""

    @staticmethod
    def from_pretrained(
        path: str | Path, *, revision: str | None = None, dtype: str = "auto"
    ) -> CausalLM:
        """Find a model; its weights are read when they are first needed.

        Args:
            path: A folder, a GGUF file, or a Hub id.
            revision: Branch, tag or commit on the Hub.
            dtype: "float32", "bfloat16", or "auto" for the faster one here.

        Raises:
            ConfigError: If the dtype is another.
            WeightsError: If the model cannot be found.
            UnsupportedModelError: If its architecture is not handled.
        """
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(
                f"dtype is {dtype!r}.", "Choose 'auto', 'float32' or 'bfloat16', as text."
            )
        found = source.resolve(str(path), revision, console.note)
        return CausalLM(found, None, base.resolve_dtype(dtype))


def get_peft_model(model: CausalLM, peft_config: object) -> PeftModel:
    """Put a fresh adapter on a model.

    Args:
        model: From `AutoModelForCausalLM.from_pretrained`.
        peft_config: A `LoraConfig`.

    Raises:
        AdapterError: If a target matches nothing, or the model has an adapter already.
        ConfigError: If the configuration is another library's.
    """
    if not isinstance(peft_config, configs.LoraConfig):
        raise ConfigError(
            f"peft_config is a {type(peft_config).__module__}.{type(peft_config).__qualname__}.",
            "Expected a jaxft.LoraConfig, which takes the same names.",
        )
    return PeftModel(model, peft_config, None, is_trainable=True)
