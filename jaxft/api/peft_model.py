"""Model handles with an adapter: fresh from `get_peft_model`, or read from a folder of PEFT's.

What all model handles share is in `model`.
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
from jaxft.lora import numbers, starts, targets, tying
from jaxft.models.network import Network
from jaxft.training.prepare.plan import Plan
from jaxft.training.prepare.request import InMemory
from jaxft.weights.places import chat_format


class PeftModel(CausalLM):
    """A base model with an adapter.

    Attributes:
        base: The base model, without the adapter.
        asked: The adapter's config as it was given.
        lora: The adapter's config with the ranks that a `Trainer` measured, if any (`eva`).
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
        """Put an adapter on a model: a fresh one, or the trained leaves of one that was read."""
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
        super().__init__(
            model.source, network, model.dtype, model.quantization, model.calibration_tokens
        )
        self.base, self.asked, self.lora, self.is_trainable = model, lora, lora, is_trainable
        self._start = trained

    @classmethod
    def from_pretrained(
        cls, model: CausalLM, adapter: str | Path, is_trainable: bool = False
    ) -> "PeftModel":
        """Read an adapter folder in PEFT's format and put it on `model`.

        Raises:
            AdapterError: If the adapter cannot be read, or is not for this model.
        """
        origin = Path(adapter)
        content, tensors = peft_format.read_adapter(origin)
        lora = peft_format.read_lora_config(content, origin)
        loaded.note_other_base(content, model.source, origin)
        found, lora, own = fitting.fitted(model.source, lora, tensors, origin)
        if found is not model.source:
            model = CausalLM(found, None, model.dtype, model.quantization, model.calibration_tokens)
        loaded.network_of(lora, own, model.family, model.network.spec, origin)
        self = cls(model, lora, None, is_trainable=is_trainable)
        read = peft_format.from_tensors(own, self.family, self.network, origin)
        self._start = trees.combine(read, numbers.leaves(lora, self.family, self.network))
        self.chat_format = chat_format.read(origin)
        return self

    def tune(self, how: configs.TuningConfig) -> None:
        """Refuse to train the model's own weights while it has an adapter.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"The model has an adapter, and tuning is {how.method}.",
            "Train the adapter (tuning='lora'), or pass the base model, without one.",
        )

    @property
    def in_memory(self) -> InMemory | None:
        """The tuned leaves from which training continues; `None` for a fresh adapter."""
        return None if self._start is None else InMemory(self.lora, self._start)

    @property
    def network_to_train(self) -> Network:
        """The network with which a run is requested; a fresh adapter has its unmeasured ranks."""
        if self.is_tuned:
            return self.network
        return targets.adapted_network(self.asked, self.family, self.network.spec)

    def take(self, plan: Plan, tree: trees.Tree) -> None:
        """Take over the leaves and ranks with which a run begins."""
        super().take(plan, tree)
        self.lora = plan.config.lora

    def _begun(self, own: trees.Tree, mesh: Mesh) -> trees.Tree:
        # Drawn again from the run's seed when training begins.
        return starts.with_adapters(own, self.family, self.network, self.lora, seed=0, mesh=mesh)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter in PEFT's format, read it back, and compare it with the live model.

        Raises:
            ConfigError: If the folder is the base model's, or lies in it.
            WeightsError: If the folder holds something that is not an adapter.
            AdapterError: If the written adapter does not give the live model's logits.
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
        model: The base model, from `AutoModelForCausalLM.from_pretrained`.
        peft_config: A `LoraConfig`.

    Raises:
        AdapterError: If a target matches nothing or is also a module to save, or the model has an
            adapter already.
        ConfigError: If `peft_config` is another library's, or has `init_from`.
    """
    if not isinstance(peft_config, configs.LoraConfig):
        raise ConfigError(
            f"peft_config is a {type(peft_config).__module__}.{type(peft_config).__qualname__}.",
            "Expected a jaxft.LoraConfig, which takes the same names.",
        )
    if peft_config.init_from is not None:
        raise ConfigError(
            f"peft_config has init_from={peft_config.init_from!r}, which is for recipes.",
            "Use PeftModel.from_pretrained(model, folder, is_trainable=True).",
        )
    targets.refuse_collisions(peft_config, model.family, model.network.spec)
    tying.warn_if_idle(peft_config, model.family, model.network.spec)
    return PeftModel(model, peft_config, None, is_trainable=True)
