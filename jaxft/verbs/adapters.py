"""`jaxft adapter`: make adapters out of others.

Separate from `lora.algebra`, which computes and neither reads folders nor prints. The invariants:
nothing is overwritten, and what is written has been read again before its folder takes its place.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxft import console
from jaxft.adapters import algebra, peft_format, serving, tables
from jaxft.adapters.algebra import LoraAdapter
from jaxft.artifacts import verify
from jaxft.errors import AdapterError, ConfigError
from jaxft.weights import save
from jaxft.weights.places import chat_format, source, tokenizer

_COMPARED = "every tensor in this folder, read back, with the one computed; no logits"


def scale(folder: Path, factor: float, output: Path) -> None:
    """Write an adapter whose update is `factor` times that of another.

    Raises:
        JaxftError: If it cannot be read or scaled, or `output` holds something.
    """
    save.check_folder(output)
    _finite(factor, "FACTOR")
    _write(
        algebra.scale(algebra.read(folder), factor), output, f"{factor:g} times {_called(folder)}"
    )


def add(
    first: Path, second: Path, output: Path, weights: Sequence[float], model: str | None
) -> None:
    """Write the sum of two adapters.

    Args:
        first: An adapter's folder.
        second: The folder of the other adapter.
        output: The new folder.
        weights: The weight of each of the two.
        model: The base model of both, where they name it differently.

    Raises:
        JaxftError: If they cannot be read or added, or `output` holds something.
    """
    save.check_folder(output)
    if len(weights) != 2:
        raise ConfigError(
            f"--weights has {len(weights)} numbers.", "Give two, such as --weights 1,0.5"
        )
    pair = _pair(first, second, model)
    origin = f"{weights[0]:g} times {_called(first)} and {weights[1]:g} times {_called(second)}"
    _write(algebra.combine(list(zip(pair, weights, strict=True))), output, origin)


def fold(folder: Path, output: Path) -> None:
    """Write an adapter again with one rank and one alpha, for servers that read no patterns.

    Raises:
        JaxftError: If it cannot be read, or `output` holds something.
    """
    save.check_folder(output)
    folded = algebra.fold(algebra.read(folder))
    _write(folded, output, f"{_called(folder)}, at one rank")
    for objection in serving.vllm_objections(folded.content, algebra.tensors_of(folded)):
        console.warning(f"vLLM refuses it all the same: {objection}.")


def interpolate(
    first: Path,
    second: Path | None,
    *,
    at: float | None,
    output: Path | None,
    data: Path | None,
    points: Sequence[float],
    model: str | None,
    max_length: int,
    batch_size: int,
) -> None:
    """Write the adapter at a point between two, or measure the loss at several, or both.

    Args:
        first: The adapter at 0; the one at 1 when it is alone, and the base is at 0.
        second: The adapter at 1.
        at: The point to write.
        output: The new folder; `None` writes nothing.
        data: Held-out rows to measure the loss on.
        points: Where to measure it.
        model: The base model, where it is not the one that the adapters name.
        max_length: Tokens in a held-out row.
        batch_size: Held-out rows at once.

    Raises:
        JaxftError: If something cannot be read or does not go together.
    """
    _check_wanted(at, output, data)
    if second is None:
        alone = algebra.read(first)
        line: Callable[[float], LoraAdapter] = lambda t: algebra.scale(alone, t)  # noqa: E731
        ends = ("the base", str(first))
    else:
        pair = _pair(first, second, model)
        line = lambda t: algebra.combine([(pair[0], 1 - t), (pair[1], t)])  # noqa: E731
        ends = (str(first), str(second))
    if data is not None:
        _measure(line, ends, points, data, model, max_length, batch_size)
    if output is not None and at is not None:
        _write(line(at), output, _between(at, first, second))


def _check_wanted(at: float | None, output: Path | None, data: Path | None) -> None:
    if output is None and data is None:
        raise ConfigError(
            "Neither --output nor --data was given.",
            "Give --at T --output NEW to write an adapter, --data FILE to measure the loss.",
        )
    if (at is None) != (output is None):
        raise ConfigError(
            "--at and --output go together.", "Give both to write an adapter, or neither."
        )
    if output is not None:
        save.check_folder(output)
    if at is not None:
        _finite(at, "--at")


def _measure(
    line: Callable[[float], LoraAdapter],
    ends: tuple[str, str],
    points: Sequence[float],
    data: Path,
    model: str | None,
    max_length: int,
    batch_size: int,
) -> None:
    """Print the held-out loss at points of a line."""
    from jaxft.artifacts import loaded
    from jaxft.parallel import devices
    from jaxft.verbs import interpolation

    adapter = line(points[0])
    devices.check()
    name, revision = loaded.base_name(adapter.content, model, adapter.origin)
    found = source.resolve(name, revision, console.note)
    console.note(f"Base model: {found.name} ({found.origin})")
    results = interpolation.evaluate_line(
        found, line, points, data, max_length=max_length, batch_size=batch_size
    )
    console.table(
        "Held-out loss",
        ("at", "loss (nats)", "perplexity"),
        [
            (f"{point:g}", each.loss, each.perplexity)
            for point, each in zip(points, results, strict=True)
        ],
    )
    best = min(range(len(points)), key=lambda index: results[index].loss)
    console.result(
        f"From {ends[0]} at 0 to {ends[1]} at 1: the lowest loss is at {points[best]:g}."
    )


def _pair(first: Path, second: Path, model: str | None) -> tuple[LoraAdapter, LoraAdapter]:
    """Read two adapters of one base model."""
    one, other = algebra.read(first), algebra.read(second)
    if model is not None:
        one, other = algebra.with_base(one, model), algebra.with_base(other, model)
    algebra.check_base(one, other)
    return one, other


def _write(adapter: LoraAdapter, output: Path, origin: str) -> None:
    """Write an adapter folder, whose card says where it is from, and make sure it reads back.

    Raises:
        ConfigError: If the folder lies in that of the base model.
        AdapterError: If it reads back otherwise.
    """
    base_model, revision = adapter.base_model, adapter.content.get("revision")
    base = None if base_model is None else source.here(base_model, revision)
    if base is not None:
        save.check_apart(output, base)
    expected = algebra.tensors_of(adapter)

    def check(folder: Path) -> dict[str, str]:
        written = algebra.tensors_of(algebra.read(folder))
        if written.keys() != expected.keys() or any(
            not np.array_equal(written[name], tensor) for name, tensor in expected.items()
        ):
            raise AdapterError(
                f"The adapter was written to the disk of {output}, and reads back otherwise.",
                "It is not kept: look to the disk.",
            )
        # The result is exact algebra of tensors, and no base model is read that could have logits.
        _keep_words(adapter.origin, folder)
        record = {"compared": _COMPARED, "num_tensors": len(expected), "max_difference": 0.0}
        verify.write(folder, record)
        return {"Verified": "read back, every tensor is the one computed, bit for bit"}

    rows = max((len(tensor) for tensor in adapter.beside.values()), default=None)
    beside = tables.Beside(rows, {})  # the tensors themselves are among what is expected
    facts = {"Made from": origin}
    peft_format.save_adapter(output, expected, adapter.content, check, facts, beside)
    console.result(f"Adapter: {output}")


def _keep_words(origin: Path, folder: Path) -> None:
    """Copy what says how an adapter is asked and where it stops, and a tokenizer of its own."""
    for name in (*tokenizer.FILES, chat_format.TEMPLATE_FILE, chat_format.GENERATION_FILE):
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)


def _between(at: float, first: Path, second: Path | None) -> str:
    if second is None:
        return f"{at:g} times {_called(first)}"
    return f"{_called(first)} (0) and {_called(second)} (1), at {at:g} between them"


def _called(folder: Path) -> str:
    """Return what a card calls an adapter: the end of its path, which is nobody else's."""
    return "/".join(folder.resolve().parts[-2:])


def _finite(value: float, name: str) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{name} is {value}.", "Give a number.")
