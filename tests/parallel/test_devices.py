"""The devices in use are said, and a GPU that is left idle stops the run."""

import os
import stat

import jax
import pytest

from jaxft.errors import DeviceError
from jaxft.parallel import devices


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Return a function that installs a driver tool which prints and exits as told."""

    def install(script):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_line_tells_number_kind_and_version():
    line = devices.describe()
    assert line.startswith("4 x ")
    assert jax.__version__ in line
    assert "cpu" in line


def test_visible_gpu_with_jax_on_cpu_stops_with_the_command_that_mends_it(nvidia_smi):
    nvidia_smi("echo NVIDIA H100; echo NVIDIA A100")
    with pytest.raises(DeviceError, match=r"NVIDIA H100\)") as raised:
        devices.check()
    assert "pip install -e '.[cuda13]'" in raised.value.remedy
    assert "JAX_PLATFORMS=cpu" in raised.value.remedy


def test_cpu_that_is_meant_is_let_pass(nvidia_smi, monkeypatch):
    nvidia_smi("echo NVIDIA H100")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    devices.check()


def test_hidden_gpu_is_let_pass(nvidia_smi, monkeypatch):
    nvidia_smi("echo NVIDIA H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    devices.check()


def test_driver_that_lists_nothing_is_let_pass(nvidia_smi):
    nvidia_smi("exit 0")
    devices.check()


def test_driver_that_fails_is_not_a_gpu(nvidia_smi):
    nvidia_smi("echo NVIDIA-SMI has failed because it could not communicate; exit 9")
    devices.check()
