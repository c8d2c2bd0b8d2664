"""Hold every combination of what an adapter can be to PEFT, on every kind of model.

    python scripts/cross_variants.py                   # all of them: hours
    python scripts/cross_variants.py --sample 100      # so many at random
    python scripts/cross_variants.py --only form=dora targets=head

The suite compares a covering set of these combinations (tests/reference/reference_variants.py says
which there are, and what is compared). Needs the extra `[reference]`. Ends with a table of the
largest differences by kind of model, and exit status 1 if anything went wrong.
"""

import argparse
import random
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "reference")]

import covering
import jax
import reference_models
import reference_variants
import transformers
from covering import Row
from reference_models import TinyModel
from reference_runs import TOLERANCE
from reference_variants import CLEARLY, FACTORS, KINDS, Seen

from jaxft import console
from jaxft.parallel import mesh as meshes


def main() -> None:
    """Compare, and print what was seen."""
    args = parse()
    wanted = dict(pair.split("=", 1) for pair in args.only)
    rows = [
        row
        for row in covering.cross(FACTORS, reference_variants.is_allowed)
        if all(row[factor] == level for factor, level in wanted.items())
    ]
    if args.sample is not None:
        rows = random.Random(args.seed).sample(rows, min(args.sample, len(rows)))
    warnings.simplefilter("ignore")  # PEFT's, of which the suite has a list
    transformers.utils.logging.disable_progress_bar()
    seen: dict[str, list[Seen]] = defaultdict(list)
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        models = Models(Path(folder))
        with console.loading("Comparing", len(rows)) as count:
            for number, row in enumerate(rows):
                try:
                    found = compare(models.of(row["kind"]), row, Path(folder) / str(number))
                except Exception as error:  # one row that breaks is one result among many
                    failures.append((row, f"{type(error).__name__}: {error}"))
                else:
                    seen[row["kind"]].append(found)
                    if not is_right(found):
                        failures.append((row, repr(found)))
                jax.clear_caches()  # every row has programs of its own
                count(1)
    show(seen, failures)
    sys.exit(1 if failures else 0)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, help="how many combinations, at random")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="FACTOR=LEVEL", help="only rows with these levels"
    )
    return parser.parse_args()


class Models:
    """The tiny models, made when they are first needed."""

    def __init__(self, folder: Path) -> None:
        """Make none yet; they will lie in `folder`."""
        self._folder = folder
        self._made: dict[str, TinyModel] = {}

    def of(self, kind: str) -> TinyModel:
        """Return the model of a kind."""
        name = KINDS[kind]
        if name not in self._made:
            folder = self._folder / name
            folder.mkdir()
            self._made[name] = reference_models.make(name, folder, std=reference_models.CALM_STD)
        return self._made[name]


def compare(model: TinyModel, row: Row, folder: Path) -> Seen:
    """Compare one row."""
    folder.mkdir()
    return reference_variants.compare(model, row, folder, meshes.single_device_mesh())


def is_right(seen: Seen) -> bool:
    """Return whether all differences are within the tolerance, and the adapter did something."""
    return max(seen.logits, seen.gradients, seen.returned) < TOLERANCE and seen.moved > CLEARLY


def show(seen: dict[str, list[Seen]], failures: list[tuple[Row, str]]) -> None:
    """Print the largest differences, and what went wrong."""
    rows = [
        [kind, str(len(found))]
        + [f"{max(getattr(one, name) for one in found):.1e}" for name in Seen._fields[:3]]
        for kind, found in seen.items()
    ]
    console.table(
        "Largest relative differences from PEFT",
        ["kind of model", "rows", "logits", "gradients", "read by PEFT"],
        rows,
    )
    for row, why in failures:
        print(f"FAILED {row}\n       {why}")


if __name__ == "__main__":
    main()
