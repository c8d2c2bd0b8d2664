"""`jaxft export`: a tuned model as one that needs no adapter.

The adapter is merged into its base and written as transformers reads it (safetensors), or as its
former Flax classes did (msgpack).
"""

from pathlib import Path

from jaxft import console
from jaxft.lora import tuned, whole
from jaxft.parallel import devices
from jaxft.parallel import mesh as meshes
from jaxft.weights import save


def export(
    *, adapter: Path | None, model: str | None, output: Path, kind: save.Format, dtype: str
) -> None:
    """Merge an adapter into its base model and write the whole, checked.

    Args:
        adapter: Folder of the adapter; `None` writes the base model in another format.
        model: The base model; `None` takes the one that the adapter names.
        output: The new folder.
        kind: "merged" (safetensors) or "flax" (msgpack).
        dtype: Of the weights written; "auto" is that of the base model's file.

    Raises:
        JaxftError: If something cannot be read, or what was written is not the same model.
    """
    devices.check()
    save.check_folder(output)
    found, lora, tensors, origin = tuned.find(adapter, model)
    stored = whole.stored_dtype(found)
    mesh = meshes.single_device_mesh()
    loaded = tuned.load(found, lora, tensors, origin=origin, mesh=mesh, dtype=stored)
    whole.write_model(
        output,
        found,
        loaded,
        mesh=mesh,
        kind=kind,
        dtype=stored if dtype == "auto" else dtype,
        replaces=False,
    )
    console.result(f"Merged model: {output}")
