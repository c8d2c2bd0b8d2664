"""A model handle with an adapter: fresh from `get_peft_model`, or read from a folder of PEFT's.

Separate from `model` for its length; what is shared with a model without one is there.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxft import config as configs
from jaxft import tree as trees
from jaxft.adapters import fitting, peft_format
from jaxft.api.model import CausalLM
from jaxft.artifacts import loaded, verify
from jaxft.artifacts.adapter import write_adapter
from jaxft.errors import AdapterError, ConfigError
from jaxft.leaves.address import Address
from jaxft.lora import starts, targets, tying
from jaxft.weights.places import chat_format


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
        if model.is_tuned:
            raise AdapterError(
                "The model itself was tuned, and an adapter is for a base that can be found again.",
                "Write it with save_pretrained, and put the adapter on what is read from there.",
            )
        network = targets.adapted_network(lora, model.family, model.network.spec)
        super().__init__(model.source, network, model.dtype, model.quantization)
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
        origin = Path(adapter)
        content, tensors = peft_format.read_adapter(origin)
        lora = peft_format.read_lora_config(content, origin)
        loaded.note_other_base(content, model.source, origin)
        found, lora, own = fitting.fitted(model.source, lora, tensors, origin)
        if found is not model.source:
            model = CausalLM(found, None, model.dtype, model.quantization)
        loaded.network_of(lora, own, model.family, model.network.spec, origin)
        self = cls(model, lora, None, is_trainable=is_trainable)
        self._start = peft_format.from_tensors(own, self.family, self.network, origin)
        self.chat_format = chat_format.read(origin)
        return self

    def tune(self, how: configs.TuningConfig) -> None:
        """Refuse to train the model itself beside an adapter.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"The model has an adapter, and tuning is {how.method}.",
            "Train the adapter (tuning='lora'), or pass the base model, without one.",
        )

    def start_from(self, seed: int) -> None:
        """Draw the adapter from a seed, unless it was read from a folder or trained."""
        self._seed = seed
        if self._start is None and self._tree is not None and self._mesh is not None:
            adapters = trees.map_with_path(
                lambda path, _: Address.parse(path).is_adapter, self._tree
            )
            own = starts.without(trees.partition(self._tree, adapters)[1])
            self._tree = self._begun(own, self._mesh)

    def _begun(self, own: trees.Tree, mesh: Mesh) -> trees.Tree:
        kind, seed = self.lora.init_lora_weights, self._seed
        return starts.with_adapters(own, self.family, self.network, kind=kind, seed=seed, mesh=mesh)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's format, read back and compared.

        Raises:
            ConfigError: If the folder is the base model's, or lies in it.
            WeightsError: If it holds something that is no adapter.
            AdapterError: If what is on disk does not give the live model's logits.
        """
        write_adapter(
            Path(folder),
            self.source,
            self.lora,
            self._live(),
            verify.spread_row(self.network),
            mesh=self._placed_on(),
            dtype=self.dtype,
            facts={},
        )


def get_peft_model(model: CausalLM, peft_config: object) -> PeftModel:
    """Put a fresh adapter on a model.

    Args:
        model: From `AutoModelForCausalLM.from_pretrained`.
        peft_config: A `LoraConfig`.

    Raises:
        AdapterError: If a target matches nothing or is a module to save as well, or the model has
            an adapter already.
        ConfigError: If the configuration is another library's, or measures rows (`eva`).
    """
    if not isinstance(peft_config, configs.LoraConfig):
        raise ConfigError(
            f"peft_config is a {type(peft_config).__module__}.{type(peft_config).__qualname__}.",
            "Expected a jaxft.LoraConfig, which takes the same names.",
        )
    if peft_config.eva_config is not None:
        raise ConfigError(
            "peft_config has init_lora_weights='eva', which measures training rows beforehand.",
            "From Python that is not supported yet: train with a recipe (jaxft train).",
        )
    if peft_config.init_from is not None:
        raise ConfigError(
            f"peft_config has init_from={peft_config.init_from!r}, which is for recipes.",
            "Use PeftModel.from_pretrained(model, folder, is_trainable=True).",
        )
    targets.refuse_collisions(peft_config, model.family, model.network.spec)
    tying.warn_if_idle(peft_config, model.family, model.network.spec)
    return PeftModel(model, peft_config, None, is_trainable=True)
