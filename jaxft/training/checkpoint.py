"""Checkpoints of a run: the state and the record of progress, never the base weights.

Saving is asynchronous. Beside the checkpoints lies the run's fingerprint, everything that its
numbers depend on; a folder whose fingerprint is another run's is refused, not overwritten. A
checkpoint that cannot be read (half copied, say) is said to be so, and the one before it is used.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from jaxft import console
from jaxft.errors import CheckpointError
from jaxft.training.state import State

_FINGERPRINT_FILE = "fingerprint.json"


class Checkpoints:
    """The checkpoints of one run, in one folder; a context manager that waits for the last save."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], keep: int | None) -> None:
        """Open the folder, made if it does not exist.

        Args:
            folder: Where the checkpoints lie.
            fingerprint: What the run's numbers depend on: JSON values by name.
            keep: How many of the latest are kept; `None` for all.

        Raises:
            CheckpointError: If the folder holds another run's checkpoints.
        """
        self._folder = folder.absolute()
        steps = check_folder(self._folder, fingerprint)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not steps:
            text = json.dumps(fingerprint, indent=2, sort_keys=True)
            (self._folder / _FINGERPRINT_FILE).write_text(text + "\n", encoding="utf-8")
        policy = None if keep is None else ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: State, progress: Mapping[str, Any]) -> None:
        """Begin to save; returns once the state may be changed.

        Args:
            step: Number of steps done.
            state: All of it is copied to the host before this returns.
            progress: JSON values to restore with it.

        Raises:
            CheckpointError: If the checkpoint was refused.
        """
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(dict(progress))
        )
        # orbax answers False, and raises nothing, when it saves nothing.
        if step not in self._manager.all_steps() and not self._manager.save(step, args=content):
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} was not saved.",
                "Look for a file or folder of that name, and for room on the disk.",
            )

    def restore_latest(self, abstract: State) -> tuple[State, dict[str, Any]] | None:
        """Return the latest readable state and its progress; `None` if there is none.

        Args:
            abstract: The state as ShapeDtypeStructs with the shardings that it is to have.

        Raises:
            CheckpointError: If there are checkpoints, and none of them can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        reason = ""
        for step in steps:
            content = ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
            )
            try:
                restored = self._manager.restore(step, args=content)
            # What a damaged checkpoint raises depends on which of its files is damaged.
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = str(error).splitlines()[0]
                console.warning(f"{self._folder / str(step)} cannot be read ({reason}).")
                self._manager.delete(step)
                continue
            return jax.block_until_ready(restored.state), dict(restored.progress)
        if steps:
            raise CheckpointError(
                f"{self._folder}: none of {len(steps)} checkpoints can be read ({reason}).",
                "Choose another train.output_dir to start anew.",
            )
        return None


def check_folder(folder: Path, fingerprint: Mapping[str, Any]) -> list[int]:
    """Return the steps of the checkpoints in `folder`, once they are seen to be this run's.

    Raises:
        CheckpointError: If they are another run's; says in what it differs.
    """
    if not folder.is_dir():
        return []
    steps = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    if not steps:
        return []
    path = folder / _FINGERPRINT_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = {}
    # Through JSON, so that a tuple here equals the list it was saved as.
    current = json.loads(json.dumps(dict(fingerprint)))
    differing = sorted(
        key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key)
    )
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{folder} holds checkpoints of another run: it differs in {', '.join(differing)} "
            f"({key} was {_shown(saved.get(key))}, now {_shown(current.get(key))}).",
            "Choose another train.output_dir, or run the recipe that the checkpoints belong to.",
        )
    return steps


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
