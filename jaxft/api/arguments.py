"""`LoraConfig` and `TrainingArguments` as Python has them: the recipe's sections, built by call."""

from typing import Any

import pydantic

from jaxft import config


class LoraConfig(config.LoraConfig):
    """The adapter, in PEFT's names and with PEFT's defaults."""

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            ConfigError: If a name is unknown or not supported, or a value is out of range.
        """
        try:
            super().__init__(**values)
        except pydantic.ValidationError as invalid:
            raise config.section_error(invalid, "lora", values) from None


class TrainingArguments(config.TrainConfig):
    """The run, in transformers' names and with transformers' defaults."""

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            ConfigError: If a name is unknown or not supported, or a value is out of range.
        """
        try:
            super().__init__(**values)
        except pydantic.ValidationError as invalid:
            raise config.section_error(invalid, "train", values) from None
