"""`Trainer`: the command line's run from Python, and what Python adds to it."""

from __future__ import annotations

import json

import conftest_rows as rows_of
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import datasets
import jaxft
from jaxft.errors import CheckpointError, ConfigError, DataError
from jaxft.training import setup
