"""Families know names alone: reading a config.json loads neither jax nor flax."""

import subprocess
import sys

from jaxft.models.activations import ACTIVATIONS
from jaxft.models.families.activation_names import ACTIVATION_NAMES


def test_the_names_of_activations_are_those_that_are_computed():
    assert set(ACTIVATION_NAMES) == ACTIVATIONS.keys()


def test_families_load_neither_jax_nor_flax():
    code = "import sys, jaxft.models.families; print({'jax', 'flax'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
