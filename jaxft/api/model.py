"""Model handles: what `from_pretrained` returns, called, generated from and saved like a model.

A handle is lazy. It knows where the weights are; they are read when a `Trainer` or a first call
says on which devices they are wanted. It owns no computation: it binds arguments that people
know to `models.forward`, `generation.decoding` and `lora.whole`.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxft import config as configs
from jaxft import console
from jaxft import tree as trees
from jaxft.api import resizing
from jaxft.artifacts import verify, whole
from jaxft.artifacts.loaded import Tuned
from jaxft.errors import ConfigError, DataError
from jaxft.generation import text
from jaxft.generation.decoding import CachedDecoder, check_below
from jaxft.generation.sampling import Sampling
from jaxft.leaves.address import Address
from jaxft.lora import mask, tuning
from jaxft.models import forward
from jaxft.models.bind import abstract_tree
from jaxft.models.network import Network, base_network
from jaxft.parallel import mesh as meshes
from jaxft.parallel import rules
from jaxft.training.prepare.leaves import Held, overlaid
from jaxft.training.prepare.plan import Plan
from jaxft.training.prepare.request import InMemory
from jaxft.weights import base
from jaxft.weights.base import Base
from jaxft.weights.places import chat_format
from jaxft.weights.places.chat_format import ChatFormat
from jaxft.weights.places.source import Source


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
        quantization: To what the frozen matrices of its layers are quantized; `None` for nothing.
        calibration_tokens: How many tokens of training rows the model reads to be rounded anew to 4
            bits when it is trained; before, weights have the nearest codes.
    """

    def __init__(
        self,
        found: Source,
        network: Network | None,
        dtype: str,
        quantization: str | None,
        calibration_tokens: int,
    ) -> None:
        """Describe the model; `network` is the base's own unless adapters are put on."""
        self.source, self.dtype, self.quantization = found, dtype, quantization
        self.calibration_tokens = calibration_tokens
        self.family, spec = base.read_spec(found)
        self.network = base_network(spec) if network is None else network
        self._start: Mapping[str, Any] | None = None
        self._tree: trees.Tree | None = None
        self._mesh: Mesh | None = None
        self._is_calibrated = False
        self.chat_format = chat_format.BASE_FORMAT  # until it is trained, or an adapter says more

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder, with the chat template that was trained with."""
        return self.chat_format.apply(self.source.tokenizer())

    def set_chat_format(self, learned: ChatFormat) -> None:
        """Have the model be asked, and stop, as it was trained to."""
        self.chat_format = learned
        self.__dict__.pop("tokenizer", None)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says."""
        return self.source.config()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> None:
        """Give embedding and head another number of rows, as after `tokenizer.add_tokens(...)`.

        Raises:
            ConfigError: If the model was tuned already, or the numbers are out of range.
        """
        rows = resizing.num_rows(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        if rows != self.network.spec.vocab_size:
            self.source = resizing.resized(self, rows)
            self.network, self._tree = base_network(base.read_spec(self.source)[1]), None

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
        own = self.held_on(mesh).load(self.network)
        self._is_calibrated = False
        base.note_quantized(own)
        if self._start is None:
            return self._begun(own, mesh)
        return overlaid(own, self._start, mesh)

    def _begun(self, own: trees.Tree, mesh: Mesh) -> trees.Tree:
        """Return all leaves as they are before training, from those that the model's files have."""
        return own

    def held_on(self, mesh: Mesh) -> Base:
        """Return the base model as it is held on a mesh."""
        spec = self.network.spec
        return Base(self.source, self.family, spec, mesh, self.dtype, self.quantization)

    def held(self, mesh: Mesh) -> Held | None:
        """Return the base's leaves on a mesh, if they are in memory as the model's files have them.

        They are not where they were rounded to suit the rows of a run before.
        """
        if self._tree is None or self._is_calibrated:
            return None
        leaves = trees.flatten(self.tree(mesh))
        own = {path: leaf for path, leaf in leaves.items() if Address.parse(path).is_own}
        return Held(self.network, trees.unflatten(own))

    @property
    def in_memory(self) -> InMemory | None:
        """What was read or trained, and is trained on; `None` for a fresh start."""
        return None if self._start is None else InMemory(configs.LoraConfig(), self._start)

    @property
    def network_to_train(self) -> Network:
        """The network that training is asked for."""
        return self.network

    def let_go(self) -> None:
        """Forget the leaves that are in memory: others are about to be there."""
        self._tree = None

    def take(self, plan: Plan, tree: trees.Tree) -> None:
        """Have the leaves that a run begins with."""
        self.network, self._tree, self._mesh = plan.network, tree, plan.mesh
        self._is_calibrated = plan.config.model.is_calibrated

    def tune(self, how: configs.TuningConfig) -> None:
        """Say what of the model itself is trained: all of it, or a part.

        Weights that were read already are read anew, those that are trained in float32.

        Raises:
            ConfigError: If a module or layer is not there, or the model was tuned otherwise.
        """
        spec = self.network.spec
        network = tuning.tuned_network(how, configs.LoraConfig(), self.family, spec)
        if network == self.network:
            return
        if self.is_tuned:
            raise ConfigError(
                "The model was tuned already, and other parts of it than are asked for now.",
                "Write it with save_pretrained, and tune what from_pretrained reads from there.",
            )
        self.network, self._tree = network, None

    @property
    def is_tuned(self) -> bool:
        """Whether what is trained is no longer as the model's files have it."""
        return self._start is not None

    def trained_leaves(self) -> trees.Tree:
        """Return the leaves that are trained, adapters and others."""
        tree = self.tree()
        return trees.partition(tree, mask.trainable_mask(self.network, tree))[0]

    def set_trained_leaves(self, trained: trees.Tree) -> None:
        """Replace the leaves that are trained, and what adapters began as if it comes with them."""
        tree = self.tree()
        assert self._mesh is not None
        self._tree = overlaid(tree, trained, self._mesh)
        tuned = mask.parts(self.network, self._tree)
        self._start = trees.combine(tuned.trainable, tuned.started, tuned.numbers)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the number of trained parameters, and of all."""
        frozen = mask.parts(self.network, abstract_tree(self.network)).frozen
        count = mask.num_trained(self.network)
        return count, count + trees.num_parameters(frozen)

    def print_trainable_parameters(self) -> None:
        """Say how many parameters are trained."""
        trained, total = self.get_nb_trainable_parameters()
        console.result(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model, read back and compared.

        Raises:
            ConfigError: If the folder is the base model's or lies in it, or the model is quantized.
            WeightsError: If it holds something that is no model, or what is on disk does not give
                the live model's logits.
        """
        if self.quantization is not None:
            raise ConfigError(
                f"The model is quantized to {self.quantization}: its original weights are gone.",
                "Read it again without quantization to write it.",
            )
        whole.write_model(
            Path(folder),
            self.source,
            self._live(),
            verify.spread_row(self.network),
            mesh=self._placed_on(),
            kind="merged",
            dtype="auto",
            replaces=True,
        )

    def _live(self) -> Tuned:
        return Tuned(self.family, self.network, self.tree(), self.chat_format)

    def _placed_on(self) -> Mesh:
        """Return the mesh of the leaves, which are read for it if they were not."""
        self.tree()
        assert self._mesh is not None
        return self._mesh

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
        check_below(positions, self.network.spec.max_tokens, "position")
        tree = self.tree()
        assert self._mesh is not None
        # As many rows as the mesh divides them into, or a multiple: the last one repeated.
        missing = -len(ids) % meshes.row_shards(self._mesh)
        padded = (np.pad(a, ((0, missing), (0, 0)), mode="edge") for a in (ids, seen, positions))
        logits = _logits(self.network, tree, *padded, mesh=self._mesh, dtype=self.dtype)
        return ModelOutput(logits[: len(ids)])

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
        check_below(ids, self.network.spec.vocab_size, "token")
        return ids, seen

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
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        eos_token_id: int | Sequence[int] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        seed: int = 0,
    ) -> np.ndarray:
        """Return the rows with their continuations, int32 [b, t + new tokens].

        A row that ends early is filled up with its end token. Each row's continuation is the one
        that it has alone.

        Args:
            input_ids: int [b t].
            attention_mask: 0 for padding, on the left; `None` for no padding.
            max_new_tokens: The most that a row gets.
            do_sample: Draw tokens; otherwise the likeliest is taken.
            temperature: Of the draw.
            top_k: The draw is among this many; 0 for all.
            top_p: The draw is among the likeliest tokens of this share together.
            min_p: The draw is among tokens that have this share of the likeliest one's probability.
            repetition_penalty: Above 1, tokens that a row has already are less likely.
            eos_token_id: What ends a row; `None` for where the model learned to end.
            stop_strings: Text that ends a row too, itself included.
            tokenizer: To find `stop_strings`; `None` for the model's own.
            seed: Of the draw.

        Raises:
            ConfigError: If an option is out of its range.
            DataError: If a token is none of the model's, or a row has none or too many.
        """
        ids, seen = self._checked(input_ids, attention_mask)
        prompts = [row[kept == 1].tolist() for row, kept in zip(ids, seen, strict=True)]
        stop_ids = self._stop_ids() if eos_token_id is None else np.ravel(eos_token_id).tolist()
        if eos_token_id is not None:
            check_below(stop_ids, self.network.spec.vocab_size, "token")
        strings = [stop_strings] if isinstance(stop_strings, str) else stop_strings or ()
        how = Sampling(
            temperature if do_sample else 0.0, top_k, top_p, min_p or 0.0, repetition_penalty, seed
        )
        tree = self.tree()
        assert self._mesh is not None
        decoder = CachedDecoder(self.network, stop_ids=stop_ids, mesh=self._mesh, dtype=self.dtype)
        ends = text.ends_with(tokenizer or self.tokenizer, prompts, strings) if strings else None
        steps = list(
            decoder.steps(tree, prompts, max_new_tokens=max_new_tokens, how=how, ends=ends)
        )
        new, is_new = (np.stack(each, axis=1) for each in zip(*steps, strict=True))
        # A row that a string ended goes on repeating what completed it.
        is_end = np.isin(new, stop_ids)
        filled = np.where(is_new | is_end, new, (*stop_ids, 0)[0])
        return np.concatenate([ids, filled.astype(np.int32)], axis=1)

    def _stop_ids(self) -> list[int]:
        own = base.read_stop_ids(self.source, self.tokenizer)
        return sorted({*own, *self.chat_format.stop_ids})


@functools.partial(jax.jit, static_argnames=("network", "mesh", "dtype"))
def _logits(
    network: Network, tree: Any, ids: Any, segments: Any, positions: Any, mesh: Mesh, dtype: str
) -> jax.Array:
    return forward.logits(network, tree, ids, segments, positions, mesh=mesh, dtype=dtype)
