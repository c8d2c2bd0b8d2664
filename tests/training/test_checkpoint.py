"""Checkpoints come back bit for bit; another run's and damaged ones are noticed, none is lost."""

from __future__ import annotations

import gc
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.config import TrainConfig
from jaxft.errors import CheckpointError
from jaxft.parallel import mesh as meshes
from jaxft.training import checkpoint, optimizer
from jaxft.training import state as states

FINGERPRINT = {"seed": 1, "lora": {"r": 8}, "pair": (1, 2)}
HYPER = optimizer.hyper_of(TrainConfig(output_dir="run"), 10)
MESH = meshes.make_mesh("auto", 1, 1)
START = {"groups": {"0": {"0": {"attn": {"q": {"lora_a": np.zeros((2, 3, 50), np.float32)}}}}}}


def make_state(step: int) -> dict[str, Any]:
    """Return a state of random numbers, another for each step."""
    state = states.init_state(START, {}, HYPER, optimizer.make_optimizer, MESH).saved()
    rng = np.random.default_rng(step)

    def draw(leaf: jax.Array) -> jax.Array:
        is_step = leaf.dtype == np.int32
        values = np.int32(step) if is_step else rng.standard_normal(leaf.shape, np.float32)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(draw, state)


def open_folder(folder, keep=None, fingerprint=FINGERPRINT):
    return checkpoint.Checkpoints(folder, fingerprint, keep)


def restore(folder):
    """Return the latest step, its state as bytes, and its progress."""
    with open_folder(folder) as checkpoints:
        state, progress = checkpoints.restore_latest(
            states.abstract_saved(START, {}, HYPER, optimizer.make_optimizer, MESH)
        ) or (None, None)
        return state and int(state["step"]), leaf_bytes(state), progress


def leaf_bytes(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 2, 4 and 6."""
    with open_folder(tmp_path / "checkpoints") as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, make_state(step), {"loss_sum": step / 7})
    return tmp_path / "checkpoints"


def test_the_latest_state_comes_back_bit_for_bit_with_its_progress(saved):
    assert restore(saved) == (6, leaf_bytes(make_state(6)), {"loss_sum": 6 / 7})


def test_restored_arrays_lie_where_the_abstract_state_says(saved):
    with open_folder(saved) as checkpoints:
        abstract = states.abstract_saved(START, {}, HYPER, optimizer.make_optimizer, MESH)
        state, _ = checkpoints.restore_latest(abstract)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, state, abstract))


def test_a_folder_without_checkpoints_restores_nothing(tmp_path):
    assert restore(tmp_path / "new") == (None, [], None)


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    scramble = jax.jit(lambda state: jax.tree.map(jnp.zeros_like, state), donate_argnums=0)
    with open_folder(tmp_path) as checkpoints:
        state = make_state(1)
        checkpoints.save(1, state, {})
        for leaf in jax.tree.leaves(scramble(state)):
            leaf.block_until_ready()
    assert restore(tmp_path) == (1, leaf_bytes(make_state(1)), {})


def test_only_so_many_are_kept(tmp_path):
    with open_folder(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, make_state(step), {})
    assert checkpoint.saved_steps(tmp_path) == [3, 4]


def test_a_step_that_is_saved_is_not_saved_again(saved):
    with open_folder(saved) as checkpoints:
        checkpoints.save(6, make_state(99), {})
    assert restore(saved)[1] == leaf_bytes(make_state(6))


def test_a_step_before_the_latest_is_refused_and_not_silently_dropped(saved):
    with open_folder(saved) as checkpoints, pytest.raises(CheckpointError, match="of step 5"):
        checkpoints.save(5, make_state(5), {})


def test_a_disk_that_is_full_is_said_in_two_lines(tmp_path, monkeypatch):
    with open_folder(tmp_path) as checkpoints:

        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(CheckpointError, match="No space left on device") as raised:
            checkpoints.save(1, make_state(1), {})
    assert "Make room" in raised.value.remedy


def empty_the_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def truncate(pattern):
    """Return a function that halves the first file that matches, by size the largest first."""

    def damage(path):
        file = max(path.glob(pattern), key=lambda file: file.stat().st_size)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return damage


def remove_the_progress(path):
    shutil.rmtree(path / "progress")


def flip_a_bit(path):
    """Flip a bit of the numbers, which nothing but a checksum can notice."""
    file = max(path.glob("state/ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


DAMAGES = [
    empty_the_folder,
    remove_the_progress,
    flip_a_bit,
    truncate("progress/metadata"),
    truncate("state/_METADATA"),
    truncate("state/manifest.ocdbt"),
    truncate("state/ocdbt.process_0/d/*"),
]


# orbax gives up at the first fault, and what is still being read then finds its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_latest_checkpoint_gives_way_to_the_one_before(saved, damage, capsys):
    damage(saved / "6")
    left = sorted(path.relative_to(saved / "6") for path in (saved / "6").rglob("*"))
    assert restore(saved) == (4, leaf_bytes(make_state(4)), {"loss_sum": 4 / 7})
    time.sleep(0.2)  # those readings end, and their complaints belong to this test
    gc.collect()
    warned = capsys.readouterr().err
    assert f"warning: {saved}/6 cannot be read: " in warned
    assert f"kept as {saved}/6.unreadable" in warned
    aside = saved / "6.unreadable"
    assert sorted(path.relative_to(aside) for path in aside.rglob("*")) == left


def test_numbers_that_are_not_those_that_were_saved_are_noticed(saved, monkeypatch, capsys):
    with monkeypatch.context() as patch, open_folder(saved) as checkpoints:
        patch.setattr(checkpoint, "_checksum", lambda state: 1)
        checkpoints.save(8, make_state(8), {})
    assert restore(saved)[0] == 6
    assert "its contents have changed since it was saved" in capsys.readouterr().err


def test_what_was_damaged_can_be_saved_again_and_a_second_damage_has_its_own_place(saved):
    for _ in range(2):
        empty_the_folder(saved / "6")
        with open_folder(saved) as checkpoints:
            checkpoints.restore_latest(
                states.abstract_saved(START, {}, HYPER, optimizer.make_optimizer, MESH)
            )
            checkpoints.save(6, make_state(6), {})
        assert restore(saved) == (6, leaf_bytes(make_state(6)), {})
    assert {path.name for path in saved.glob("*.unreadable*")} == {
        "6.unreadable",
        "6.unreadablex",
    }


def test_when_none_can_be_read_nothing_is_touched(saved):
    for step in (2, 4, 6):
        empty_the_folder(saved / str(step))
    with pytest.raises(CheckpointError, match="none of 3 checkpoints"):
        restore(saved)
    assert checkpoint.saved_steps(saved) == [2, 4, 6]


def test_a_checkpoint_under_another_steps_name_is_not_taken(saved, capsys):
    shutil.copytree(saved / "4", saved / "8")
    assert restore(saved)[0] == 6
    assert "it is of step 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 2}, r"differs in seed \(seed was 1, now 2\)"),
        ({"lora": {"r": 4}}, r'lora was {"r": 8}, now {"r": 4}'),
        ({"more": 0, "seed": 2}, r"differs in more, seed \(more was null, now 0\)"),
    ],
)
def test_the_checkpoints_of_another_run_are_refused_by_what_differs(saved, changed, said):
    with pytest.raises(CheckpointError, match=said):
        open_folder(saved, fingerprint={**FINGERPRINT, **changed})
    assert restore(saved)[0] == 6


def test_checkpoints_that_nobody_vouches_for_are_refused(saved):
    (saved / "fingerprint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"fingerprint\.json, which says of what run"):
        open_folder(saved)


def test_without_checkpoints_the_folder_belongs_to_whoever_comes(tmp_path):
    with open_folder(tmp_path):
        pass
    with open_folder(tmp_path, fingerprint={**FINGERPRINT, "seed": 2}) as checkpoints:
        checkpoints.save(1, make_state(1), {})
    with pytest.raises(CheckpointError, match="seed was 2, now 1"):
        open_folder(tmp_path)
