"""Checkpoints of a run: the state and the record of progress, never the base weights.

Saving is asynchronous. Beside the checkpoints lies the run's fingerprint, everything that its
numbers depend on; a folder whose fingerprint is another run's is refused, not overwritten. A
checkpoint that cannot be read (half copied, say), or is not what was saved, is said to be so and
kept under another name, and the one before it is used. Nothing is deleted but what
`save_total_limit` lets go.
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

Saved = dict[str, Any]  # `TrainState.saved`: "trainable", "opt_state", "step", perhaps "began"

_FINGERPRINT_FILE = "fingerprint.json"
_CHECKSUM = "checksum"  # in the record of progress; orbax itself notices only what it cannot parse


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
            cleanup_tmp_directories=True,  # what a killed save left
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait until everything is on disk."""
        self.close()

    def close(self) -> None:
        """Wait until everything is on disk, and let go of the folder."""
        self.wait()
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps of which there are checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Saved, progress: Mapping[str, Any]) -> None:
        """Begin to save, if it is not saved yet; returns once the state may be changed.

        Args:
            step: Number of steps done.
            state: All of it is copied to the host before this returns.
            progress: JSON values to restore with it.

        Raises:
            CheckpointError: If this checkpoint or the one before cannot be written.
        """
        if step in self.steps:
            return
        record = {**progress, _CHECKSUM: _checksum(state)}
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(record)
        )
        with self._write_errors():
            is_saved = self._manager.save(step, args=content)
        if not is_saved:  # which orbax says without raising anything
            raise CheckpointError(
                f"{self._folder}: the checkpoint of step {step} was not saved.",
                "Look for a file or folder of that name, or of a later step.",
            )

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            CheckpointError: If it cannot be written.
        """
        with self._write_errors():
            self._manager.wait_until_finished()

    def restore_latest(self, abstract: Saved) -> tuple[Saved, dict[str, Any]] | None:
        """Return the latest readable state and its progress; `None` if there is none.

        Checkpoints after it, which cannot be read, get another name, so that their steps can be
        saved again.

        Args:
            abstract: The state as ShapeDtypeStructs with the shardings that it is to have.

        Raises:
            CheckpointError: If there are checkpoints, and none of them can be read. They are left
                as they are.
        """
        unreadable: list[int] = []
        reason = ""
        for step in reversed(self.steps):
            try:
                restored = self._restore(step, abstract)
            # What a damaged checkpoint raises depends on which of its files is damaged; of some,
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
            ValueError: If it is not what was saved.
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
        """Rename checkpoints, so that they are kept and not in the way."""
        for step in steps:
            path = self._folder / f"{step}.unreadable"
            while path.exists():  # from an earlier time
                path = path.with_name(path.name + "x")
            (self._folder / str(step)).rename(path)
            console.warning(f"It is kept as {path}, and its steps are done again.")
        if steps:
            self._manager.reload()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        """Turn what goes wrong in writing into an error that says so."""
        try:
            yield
        # tensorstore raises ValueError where the operating system has OSError.
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self._folder}: a checkpoint cannot be written ({_first_line(error)}).",
                "Make room on the disk, or see to it that this user may write there; then run the "
                "same command again.",
            ) from error


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, readable or not; none if there is none."""
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def check_fingerprint(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Make sure that the checkpoints in `folder` are this run's.

    Raises:
        CheckpointError: If they are another run's; says in what it differs.
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
