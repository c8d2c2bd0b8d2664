"""`AutoModelForCausalLM`: finds a model by its name and returns a handle on it."""

from pathlib import Path
from typing import Any

import pydantic

from jaxft import config as configs
from jaxft import console
from jaxft.api.model import CausalLM
from jaxft.weights import base
from jaxft.weights.places import new_tokens, source


class AutoModelForCausalLM:
    """Finds models by name; `from_pretrained` returns a `CausalLM`."""

    @staticmethod
    def from_pretrained(
        path: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        quantization: str | None = None,
        calibration_tokens: int = configs.ModelConfig.model_fields["calibration_tokens"].default,
        **others: Any,
    ) -> CausalLM:
        """Find a model; its weights are read when they are first needed.

        Args:
            path: A folder, a GGUF file, or a Hub id.
            revision: Branch, tag or commit on the Hub.
            dtype: "float32", "bfloat16", or "auto" for the faster one on this machine.
            quantization: The format to which the frozen matrices of the layers are quantized:
                "nf4", "int4", "int8" or "fp8"; `None` for no quantization.
            calibration_tokens: The number of tokens of training rows that the model reads when a
                `Trainer` rounds its 4-bit matrices, so that their outputs stay close to those of
                the original matrices. With 0, and before training, each weight has the nearest
                code.
            **others: Other arguments of transformers, if their values ask for nothing.

        Raises:
            ConfigError: If an argument is unknown or not supported, or a value is not valid for it.
            WeightsError: If the model cannot be found.
            UnsupportedModelError: If the architecture is not supported.
        """
        values = {"path": str(path), "revision": revision, "dtype": dtype} | others
        values |= {"quantization": quantization, "calibration_tokens": calibration_tokens}
        try:
            wanted = configs.ModelConfig(**values)
        except pydantic.ValidationError as invalid:
            raise configs.section_error(invalid, "model", values) from None
        found = source.resolve(wanted.path, wanted.revision, console.note)
        found = new_tokens.with_new_tokens(found, wanted.new_tokens, console.note)
        dtype = base.resolve_dtype(wanted.dtype)
        return CausalLM(found, None, dtype, wanted.quantization, wanted.calibration_tokens)
