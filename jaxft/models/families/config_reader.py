"""How a config.json is read without overlooking anything.

`ConfigReader` hands out keys one by one and remembers them; `finish` raises for every key left
over that may change numbers. So a config key that changes numbers and is not handled
can not pass unseen.
"""

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families import foreign_keys

REQUIRED = object()  # the default of a key that must be there

# Dropout of the base model. It is not applied in training: only the adapter's own dropout is.
TRAINING_ONLY = frozenset(
    {
        "activation_dropout",
        "attention_dropout",
        "attention_probs_dropout_prob",
        "attn_pdrop",
        "dropout",
        "emb_pdrop",
        "embd_pdrop",
        "embed_dropout",
        "embedding_dropout",
        "hidden_dropout",
        "hidden_dropout_prob",
        "layerdrop",
        "resid_dropout",
        "resid_pdrop",
        "residual_dropout",
    }
)

# Keys that describe files, training or tokens, and never the logits of a causal forward pass.
HARMLESS = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "init_std",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "keys_to_ignore_at_inference",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)


class ConfigReader:
    """Reads a config.json key by key, and accounts for every key."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Start with nothing read."""
        self.config = config
        self._seen: set[str] = set()

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """Return the value of `key`; `default` is what transformers' config class has.

        Raises:
            UnsupportedModelError: If the key is absent and has no default.
        """
        self._seen.add(key)
        if key in self.config:
            return self.config[key]
        if default is REQUIRED:
            raise UnsupportedModelError(
                f"The model's config.json has no {key!r}.",
                "Take the config.json that belongs to the weights.",
            )
        return default

    def require(self, key: str, allowed: tuple[Any, ...], default: Any = None) -> None:
        """Read a key of which only some values are handled.

        Raises:
            UnsupportedModelError: If the value is another one.
        """
        value = self.get(key, default)
        if value not in allowed:
            raise UnsupportedModelError(
                f"The model's config.json has {key}={value!r}, which is not handled.",
                f"Handled here: {', '.join(map(repr, allowed))}.",
            )

    def finish(self) -> None:
        """Raise for keys that nobody read, and that may change numbers.

        Raises:
            UnsupportedModelError: Names them.
        """
        left = sorted(self.config.keys() - self._seen - HARMLESS - TRAINING_ONLY)
        unhandled = foreign_keys.unhandled(self.config, left)
        if unhandled:
            raise UnsupportedModelError(
                f"The model's config.json has keys that are not handled: {', '.join(unhandled)}.",
                "They may change its numbers. Remove them only if you know that they do not.",
            )


def unapplied_dropout(config: Mapping[str, Any]) -> list[str]:
    """Return the base model's own dropouts, which training here leaves out: "dropout=0.1"."""
    said = {**(config.get("text_config") or {}), **config}
    return [f"{key}={said[key]}" for key in sorted(TRAINING_ONLY) if said.get(key)]
