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

    def __init__(self, output_dir: Any = None, **values: Any) -> None:
        """Check the values.

        Args:
            output_dir: Folder of the run; the one value that may come without its name.
            **values: The others.

        Raises:
            ConfigError: If a name is unknown or not supported, or a value is out of range.
        """
        if output_dir is not None:
            values = {"output_dir": output_dir, **values}
        try:
            super().__init__(**values)
        except pydantic.ValidationError as invalid:
            raise config.section_error(invalid, "train", values) from None
