"""`LoraConfig` and `TrainingArguments`: sections of a recipe, created with keyword arguments."""

from typing import Any

import pydantic

from jaxft import config


class LoraConfig(config.LoraConfig):
    """The config of an adapter, with PEFT's names and defaults."""

    def __init__(self, **values: Any) -> None:
        """Validate the values.

        Raises:
            ConfigError: If a name is unknown or not supported, or a value is out of range.
        """
        try:
            super().__init__(**values)
        except pydantic.ValidationError as invalid:
            raise config.section_error(invalid, "lora", values) from None


class TrainingArguments(config.TrainConfig):
    """The options of a run, with transformers' names and defaults."""

    def __init__(self, output_dir: Any = None, **values: Any) -> None:
        """Validate the values.

        Args:
            output_dir: The folder of the run; the only value that may be a positional argument.
            **values: The other options, by name.

        Raises:
            ConfigError: If a name is unknown or not supported, or a value is out of range.
        """
        if output_dir is not None:
            values = {"output_dir": output_dir, **values}
        try:
            super().__init__(**values)
        except pydantic.ValidationError as invalid:
            raise config.section_error(invalid, "train", values) from None
