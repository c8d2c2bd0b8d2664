"""Reading the JSON files beside a model's weights, each of which holds one object."""

import json
from pathlib import Path
from typing import Any

from jaxft.errors import WeightsError


def read(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object in a file, such as `{"eos_token_id": 2}`.

    Args:
        path: The file.
        remedy: What to do if it is damaged, such as "Copy it anew."

    Raises:
        WeightsError: The file is missing or damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read ({error}).", remedy) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: not an object.", remedy)
    return content
