"""Model handles: the objects that `from_pretrained` returns, used like transformers' models.

A handle is lazy. It knows where the weights are, and reads them when a `Trainer` or a first call
decides which devices hold them. It does no computation of its own: it translates transformers'
arguments for `models.forward`, `generation.decoding` and `artifacts.whole`.
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
    """The result of a call of a model.

    Attributes:
        logits: The logits of the next token at each position, float32 [b t v].
    """

    logits: jax.Array


class CausalLM:
    """A base model, whose weights are not read until they are needed.

    Attributes:
        source: The files of the model.
        family: The family of the model.
        network: The network of the model, with its trained parts.
        dtype: The dtype of weights and activations.
        quantization: The format of the frozen matrices of the layers; `None` for no quantization.
        calibration_tokens: The number of tokens of training rows that the model reads to be rounded
            again to 4 bits when it is trained. Before that, weights have the nearest codes.
    """

    def __init__(
        self,
        found: Source,
        network: Network | None,
        dtype: str,
        quantization: str | None,
        calibration_tokens: int,
    ) -> None:
        """Read the model's description; `network=None` is the base network without adapters."""
        self.source, self.dtype, self.quantization = found, dtype, quantization
        self.calibration_tokens = calibration_tokens
        self.family, spec = base.read_spec(found)
        self.network = base_network(spec) if network is None else network
        self._start: Mapping[str, Any] | None = None
        self._tree: trees.Tree | None = None
        self._mesh: Mesh | None = None
        self._is_calibrated = False
        self.chat_format = chat_format.BASE_FORMAT  # training or an adapter may replace it

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer in the model's folder, with the chat template used in training."""
        return self.chat_format.apply(self.source.tokenizer())

    def set_chat_format(self, learned: ChatFormat) -> None:
        """Set the chat template and the stop tokens with which the model was trained."""
        self.chat_format = learned
        self.__dict__.pop("tokenizer", None)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return self.source.config()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> None:
        """Change the number of rows of embedding and head, such as after `tokenizer.add_tokens`.

        Raises:
            ConfigError: If the model was tuned already, or the numbers are out of range.
        """
        rows = resizing.num_rows(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        if rows != self.network.spec.vocab_size:
            self.source = resizing.resized(self, rows)
            self.network, self._tree = base_network(base.read_spec(self.source)[1]), None

    def tree(self, mesh: Mesh | None = None) -> trees.Tree:
        """Return all leaves; read them on first use, and move them if they are on another mesh.

        Args:
            mesh: The devices to hold the leaves; `None` for those that hold them already, or else
                one device.

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
        """Return all leaves before training, given the leaves that the model's files have."""
        return own

    def held_on(self, mesh: Mesh) -> Base:
        """Return the base model on a mesh, with this handle's dtype and quantization."""
        spec = self.network.spec
        return Base(self.source, self.family, spec, mesh, self.dtype, self.quantization)

    def held(self, mesh: Mesh) -> Held | None:
        """Return the base's leaves on a mesh, or `None` if they are not in memory as in the files.

        Leaves that were calibrated for the rows of an earlier run differ from the files.
        """
        if self._tree is None or self._is_calibrated:
            return None
        leaves = trees.flatten(self.tree(mesh))
        own = {path: leaf for path, leaf in leaves.items() if Address.parse(path).is_own}
        return Held(self.network, trees.unflatten(own))

    @property
    def in_memory(self) -> InMemory | None:
        """The tuned leaves from which training continues; `None` for a fresh start."""
        return None if self._start is None else InMemory(configs.LoraConfig(), self._start)

    @property
    def network_to_train(self) -> Network:
        """The network with which a run is requested."""
        return self.network

    def let_go(self) -> None:
        """Release the leaves in memory, to make room for others."""
        self._tree = None

    def take(self, plan: Plan, tree: trees.Tree) -> None:
        """Take over the leaves with which a run begins."""
        self.network, self._tree, self._mesh = plan.network, tree, plan.mesh
        self._is_calibrated = plan.config.model.is_calibrated

    def tune(self, how: configs.TuningConfig) -> None:
        """Set which of the model's own weights are trained: all of them, or a part.

        Weights that were read already are read again; trained ones are then float32.

        Raises:
            ConfigError: If a module or layer does not exist, or other parts were tuned before.
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
        """Whether the trained leaves differ from those of the model's files."""
        return self._start is not None

    def trained_leaves(self) -> trees.Tree:
        """Return the trained leaves: those of adapters, and the model's own."""
        tree = self.tree()
        return trees.partition(tree, mask.trainable_mask(self.network, tree))[0]

    def set_trained_leaves(self, trained: trees.Tree) -> None:
        """Replace the trained leaves, and the initial A0 and B0 of adapters if they are given."""
        tree = self.tree()
        assert self._mesh is not None
        self._tree = overlaid(tree, trained, self._mesh)
        tuned = mask.parts(self.network, self._tree)
        self._start = trees.combine(tuned.trainable, tuned.started, tuned.numbers)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the number of trained parameters, and that of all parameters."""
        frozen = mask.parts(self.network, abstract_tree(self.network)).frozen
        count = mask.num_trained(self.network)
        return count, count + trees.num_parameters(frozen)

    def print_trainable_parameters(self) -> None:
        """Print the number of trained parameters, that of all, and the percentage."""
        trained, total = self.get_nb_trainable_parameters()
        console.result(
            f"trainable params: {trained:,} || all params: {total:,} || "
            f"trainable%: {100 * trained / total:.4f}"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the whole model, read it back, and compare it with the live model.

        Raises:
            ConfigError: If the folder is the base model's or lies in it, or the model is quantized.
            WeightsError: If the folder holds something that is not a model, or the written model
                does not give the live model's logits.
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
        """Return the mesh of the leaves; read the leaves if necessary."""
        self.tree()
        assert self._mesh is not None
        return self._mesh

    def __call__(
        self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None
    ) -> ModelOutput:
        """Return the logits of a batch of token sequences.

        Args:
            input_ids: The tokens, int [b t].
            attention_mask: 1 for tokens and 0 for padding, on either side, int [b t]; `None` for no
                padding.
            position_ids: The positions, int [b t]; `None` counts the tokens of each batch row.

        Raises:
            DataError: If the model has no such token or position.
        """
        ids, seen = self._checked(input_ids, attention_mask)
        if position_ids is None:
            position_ids = np.maximum(np.cumsum(seen, axis=1) - 1, 0)
        positions = np.asarray(position_ids, np.int32)
        check_below(positions, self.network.spec.max_tokens, "position")
        tree = self.tree()
        assert self._mesh is not None
        # Padded to a multiple of the mesh's row shards, with copies of the last row.
        missing = -len(ids) % meshes.row_shards(self._mesh)
        padded = (np.pad(a, ((0, missing), (0, 0)), mode="edge") for a in (ids, seen, positions))
        logits = _logits(self.network, tree, *padded, mesh=self._mesh, dtype=self.dtype)
        return ModelOutput(logits[: len(ids)])

    def _checked(self, input_ids: Any, attention_mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and mask, int32 [b t].

        Raises:
            DataError: If a shape is wrong, or the model has no such token.
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
        """Return the batch rows with their continuations, int32 [b, t + new tokens].

        A row that ends early is filled up with its end token. The continuation of a row does not
        depend on the other rows.

        Args:
            input_ids: The tokens of the prompts, int [b t].
            attention_mask: 1 for tokens and 0 for padding, on the left, int [b t]; `None` for no
                padding.
            max_new_tokens: The largest number of tokens that are added to a row.
            do_sample: Whether tokens are drawn at random; if not, the likeliest is taken.
            temperature: The temperature of the draw: logits are divided by it.
            top_k: Draw from this many of the likeliest tokens; 0 draws from all.
            top_p: Draw from the smallest set of likeliest tokens whose probabilities sum to this.
            min_p: Draw from tokens with at least this share of the likeliest token's probability.
            repetition_penalty: A value above 1 makes tokens that a row has already less likely.
            eos_token_id: The tokens that end a row; `None` for the model's own stop tokens.
            stop_strings: Texts that end a row too; they stay in the row.
            tokenizer: The tokenizer for `stop_strings`; `None` for the model's own.
            seed: The random seed.

        Raises:
            ConfigError: If an argument is out of its range.
            DataError: If the model has no such token, or a row has no token or too many.
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
        # A row that ended with a stop string repeats the token that completed the string.
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
