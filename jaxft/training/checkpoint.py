"""Checkpoints of a run: the state and the record of progress, without the base weights.

Saving is asynchronous. The folder of the checkpoints also has the run's fingerprint: everything
that its numbers depend on. A folder with another run's fingerprint is refused, not overwritten. If
a checkpoint cannot be read (half copied, say) or differs from what was saved, a warning says so, it
is renamed, and the one before it is used. Only `save_total_limit` deletes checkpoints.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxft import console
from jaxft.errors import CheckpointError

Saved = dict[str, Any]  # `TrainState.saved`: "trainable", "opt_state", "step" and maybe "began"

_FINGERPRINT_FILE = "fingerprint.json"
_CHECKSUM = "checksum"  # in the record of progress; orbax notices only files it cannot parse


class Checkpoints:
    """The checkpoints of a run in a folder; as a context manager it waits for the last save."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], keep: int | None) -> None:
        """Open the folder; create it if it does not exist.

        Args:
            folder: The folder of the checkpoints.
            fingerprint: Everything that the run's numbers depend on, as JSON values by name.
            keep: The number of latest checkpoints to keep; `None` keeps all.

        Raises:
            CheckpointError: If the folder holds another run's checkpoints.
        """
        self._folder = folder.absolute()
        if saved_steps(self._folder):
            check_fingerprint(self._folder, fingerprint)
        else:
            text = json.dumps(fingerprint, indent=2, sort_keys=True)
            with self._write_errors():
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / _FINGERPRINT_FILE).write_text(text + "\n", encoding="utf-8")
        policy = None if keep is None else ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,  # left by a save that was killed
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        """Return the object itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until all checkpoints are on disk, and close the folder."""
        self.close()

    def close(self) -> None:
        """Wait until all checkpoints are on disk, and close the folder."""
        self.wait()
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps that have checkpoints, in ascending order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Saved, progress: Mapping[str, Any]) -> None:
        """Begin to save a checkpoint, unless the step has one; the state may be changed after this.

        Args:
            step: The number of steps done.
            state: The state to save; it is copied to the host before this returns.
            progress: JSON values that are saved and restored with the state.

        Raises:
            CheckpointError: If this checkpoint or the previous one cannot be written.
        """
        if step in self.steps:
            return
        record = {**progress, _CHECKSUM: _checksum(state)}
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(record)
        )
        with self._write_errors():
            is_saved = self._manager.save(step, args=content)
        if not is_saved:  # orbax does not raise an error for this
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} was not saved.",
                "Look for a file or folder of that name, or of a later step.",
            )

    def wait(self) -> None:
        """Wait until the checkpoints that were begun are on disk.

        Raises:
            CheckpointError: If a checkpoint cannot be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()

    def restore_latest(self, abstract: Saved) -> tuple[Saved, dict[str, Any]] | None:
        """Return the latest readable state and its progress; `None` if there are no checkpoints.

        Later checkpoints, which cannot be read, are renamed, so that their steps can be saved
        again.

        Args:
            abstract: The state as ShapeDtypeStructs with the shardings of the restored state.

        Raises:
            CheckpointError: If there are checkpoints but none can be read. They are not renamed.
        """
        unreadable: list[int] = []
        reason = ""
        for step in reversed(self.steps):
            try:
                restored = self._restore(step, abstract)
            # The type of the error depends on which file of the checkpoint is damaged; for some,
            # orbax raises a bare Exception.
            except Exception as error:
                reason = _first_line(error)
                console.warning(f"{self._folder / str(step)} cannot be read: {reason}")
                unreadable.append(step)
                continue
            self._set_aside(unreadable)
            return restored
        if unreadable:
            raise CheckpointError(
                f"{self._folder}: none of {len(unreadable)} checkpoints can be read ({reason}).",
                "Copy one anew from where it is whole, or start anew in another train.output_dir.",
            )
        return None

    def _restore(self, step: int, abstract: Saved) -> tuple[Saved, dict[str, Any]]:
        """Read one checkpoint.

        Raises:
            ValueError: If the content differs from what was saved.
        """
        content = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=content)
        state, progress = jax.block_until_ready(restored.state), dict(restored.progress)
        if progress.pop(_CHECKSUM) != _checksum(state):
            raise ValueError("its contents have changed since it was saved")
        if int(state["step"]) != step:
            raise ValueError(f"it is of step {int(state['step'])}")
        return state, progress

    def _set_aside(self, steps: list[int]) -> None:
        """Rename unreadable checkpoints, so that they are kept and their steps can be saved."""
        for step in steps:
            path = self._folder / f"{step}.unreadable"
            while path.exists():  # from an earlier run
                path = path.with_name(path.name + "x")
            (self._folder / str(step)).rename(path)
            console.warning(f"It is kept as {path}, and its steps are done again.")
        if steps:
            self._manager.reload()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Convert errors of writing files to a CheckpointError."""
        try:
            yield
        # tensorstore raises ValueError for errors of the operating system.
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._folder}: a checkpoint cannot be written ({_first_line(error)}).",
                "Make room on the disk, or see to it that this user may write there; then run the "
                "same command again.",
            ) from error


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of all checkpoints in a folder, readable or not; empty if there are none."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def check_fingerprint(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Check that the checkpoints in `folder` belong to the run with this fingerprint.

    Raises:
        CheckpointError: If they belong to another run; the message says how it differs.
    """
    path = folder / _FINGERPRINT_FILE
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds checkpoints, but {path.name}, which says of what run, cannot be read "
            f"({_first_line(error)}).",
            "Copy it there anew, or choose another train.output_dir.",
        ) from error
    # Converted by way of JSON, so that a tuple equals the list as which it was saved.
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


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checksum(state: Saved) -> int:
    """Return a number that changes with every change to the state's bytes."""
    checksum = 0
    for leaf in jax.tree.leaves(state):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return checksum


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 120 else f"{line[:117]}..."
