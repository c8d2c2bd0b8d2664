"""`jaxft export`: a tuned model as a whole model that needs no adapter.

The adapter is merged into its base. The result is written as safetensors for transformers, or as
msgpack for the former Flax classes of transformers.
"""

from pathlib import Path

from jaxft import console
from jaxft.artifacts import loaded, verify, whole
from jaxft.artifacts.loaded import Tuned
from jaxft.artifacts.verify import Rows
from jaxft.config import DataConfig, SourceConfig
from jaxft.errors import JaxftError
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.training.prepare import folder, reading
from jaxft.weights import base, save
from jaxft.weights.places.source import Source

_MAX_LENGTH = 1024  # tokens in a held-out example, if no run's recipe says it


def export(
    *,
    adapter: Path | None,
    model: str | None,
    output: Path,
    kind: save.Format,
    dtype: str,
    data: Path | None = None,
) -> None:
    """Merge an adapter into its base model, write the whole model, and verify it.

    Args:
        adapter: The folder of the adapter; `None` writes the base model in another format.
        model: The base model; `None` takes the one that the adapter names.
        output: The new folder.
        kind: "merged" (safetensors) or "flax" (msgpack).
        dtype: The dtype of the written weights; "auto" keeps the dtype of each tensor in the base
            model's file.
        data: Held-out rows to verify it on; `None` takes those of the run that made the adapter, if
            they still exist.

    Raises:
        JaxftError: Something cannot be read, or the written model is not the same model.
    """
    devices.check()
    save.check_folder(output)
    found, lora, tensors, origin = loaded.find(adapter, model)
    save.check_apart(output, found)
    working = whole.working_dtype(found.checkpoint().infos())
    mesh = meshes.single_device_mesh()
    tuned = loaded.load(found, lora, tensors, origin=origin, mesh=mesh, dtype=working)
    whole.write_model(
        output,
        found,
        tuned,
        _rows(data, adapter, found, tuned),
        mesh=mesh,
        kind=kind,
        dtype=dtype,
        replaces=False,
    )
    console.result(f"Merged model: {output}")


def _rows(data: Path | None, adapter: Path | None, found: Source, model: Tuned) -> Rows:
    """Return the rows to verify on: those of a file or of the adapter's run, or one made-up row."""
    if data is not None:
        limit = model.network.spec.max_tokens
        recipe = DataConfig(
            train=[SourceConfig(path=str(data))],
            eval=[SourceConfig(path=str(data))],
            max_length=min(_MAX_LENGTH, limit or _MAX_LENGTH),
        )
        rows = _encoded(recipe, found, model)
        assert rows is not None
        return rows
    of_run = None if adapter is None else folder.data_of(adapter.resolve().parent)
    if of_run is not None:
        try:
            rows = _encoded(of_run, found, model)
            if rows is not None:
                return rows
        except JaxftError as error:
            console.note(f"The held-out rows of the run are not used: {error.found}")
    return verify.spread_row(model.network)


def _encoded(data: DataConfig, found: Source, model: Tuned) -> Rows | None:
    """Return the held-out rows of a recipe as tokens; None if it has none."""
    tokenizer = model.chat_format.apply(found.tokenizer())
    examples = reading.held_out_examples(data, tokenizer, base.read_stop_ids(found, tokenizer))
    if examples is None:
        return None
    examples.check_ids(model.network.spec.vocab_size)
    return verify.first_rows("held-out rows", examples, model.network)
