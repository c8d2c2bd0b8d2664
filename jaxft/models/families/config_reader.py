"""Read a config.json without overlooking a key.

`ConfigReader` hands out keys one by one and remembers them. `finish` raises for every unread key
that may change the model's numbers, so such a key cannot pass unseen.
"""

from collections.abc import Mapping
from typing import Any

from jaxft.errors import UnsupportedModelError
from jaxft.models.families import foreign_keys

REQUIRED = object()  # stands for the default of a key that must be there

# Dropout of the base model. Training does not apply it; it applies the adapter's dropout only.
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

# Keys that describe files, training or tokens. They never change the logits of a causal model.
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
        """Return the value of `key`; `default` is the default of transformers' config class.

        Raises:
            UnsupportedModelError: The key is absent and has no default.
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
        """Read a key of which only the `allowed` values are supported.

        Raises:
            UnsupportedModelError: The value is not one of `allowed`.
        """
        value = self.get(key, default)
        if value not in allowed:
            raise UnsupportedModelError(
                f"The model's config.json has {key}={value!r}, which is not handled.",
                f"Handled here: {', '.join(map(repr, allowed))}.",
            )

    def finish(self) -> None:
        """Refuse a config.json with unread keys that may change the model's numbers.

        Raises:
            UnsupportedModelError: There are such keys; the message names them.
        """
        left = sorted(self.config.keys() - self._seen - HARMLESS - TRAINING_ONLY)
        unhandled = foreign_keys.unhandled(self.config, left)
        if unhandled:
            raise UnsupportedModelError(
                f"The model's config.json has keys that are not handled: {', '.join(unhandled)}.",
                "They may change its numbers. Remove them only if you know that they do not.",
            )


def unapplied_dropout(config: Mapping[str, Any]) -> list[str]:
    """Return the dropouts of config.json that training does not apply: "dropout=0.1"."""
    said = {**(config.get("text_config") or {}), **config}
    return [f"{key}={said[key]}" for key in sorted(TRAINING_ONLY) if said.get(key)]
