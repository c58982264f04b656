"""What XLA is told, and that it does it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from minestudio_jax.utils.xla_flags import configure_cpu_compiler, with_cpu_options

VECTORS = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"
OWN_SUMS = "--xla_cpu_experimental_ynn_fusion_type=-reduce"

# Sixteen channels of pixels that lie four apart, as Winograd's tiles take them.
STRIDED_SUMS = """
x = jnp.ones((64, 32, 16))
factors = jnp.arange(24.0).reshape(6, 4)
print(jax.jit(lambda x, f: sum(f[:, j, None, None, None] * x[None, :, j::4] for j in range(4)))(x, factors).sum())
"""
ROTATED_VECTORS = """
vectors, rotation = np.random.default_rng(0).normal(size=(33_000, 3)), np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
found = jax.jit(lambda v, r: jax.vmap(lambda v: jnp.linalg.norm(r @ v))(v))(
    jnp.asarray(vectors, jnp.float32), jnp.asarray(rotation, jnp.float32)
)
np.testing.assert_allclose(found, np.linalg.norm(vectors, axis=1), rtol=1e-5)
"""
SEVEN_AXES = """
one, other = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
np.testing.assert_allclose(jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(one, other), (one * other).sum(3), atol=1e-5)
"""


def run(program, **variables):
    """In a process of its own, compiled as users' programs are."""
    begin = """
import numpy as np
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

configure_cpu_compiler()
import jax
import jax.numpy as jnp
"""
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    env = {**env, "JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run(
        [sys.executable, "-c", begin + program], env=env, timeout=120, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", f"{VECTORS} {OWN_SUMS}"),
        ("--xla_dump_to=/nowhere", f"--xla_dump_to=/nowhere {VECTORS} {OWN_SUMS}"),
        ("--xla_backend_extra_options=xla_mine", f"--xla_backend_extra_options=xla_mine {OWN_SUMS}"),
        ("flags.txt", "flags.txt"),
        ("--xla_cpu_experimental_ynn_fusion_type=", f"--xla_cpu_experimental_ynn_fusion_type= {VECTORS}"),
    ],
)
def test_the_users_own_flags_stay(given, wanted):
    assert with_cpu_options(given, "0.10.2") == wanted
    assert with_cpu_options(wanted, "0.10.2") == wanted


def test_versions_that_add_up_well_are_not_told_of_sums():
    assert with_cpu_options("", "0.11.1") == f"{VECTORS} {OWN_SUMS}"
    assert with_cpu_options("", "0.12.0.dev20261101") == VECTORS


def test_processes_inherit_them(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    configure_cpu_compiler()
    assert os.environ["XLA_FLAGS"].startswith(f"--xla_dump_to=/nowhere {VECTORS}")


def test_loops_over_channels_become_vector_instructions(tmp_path):
    """Whole vectors are loaded; no element is loaded by itself to be put into one."""
    assert run(STRIDED_SUMS, XLA_FLAGS=f"--xla_dump_to={tmp_path}").returncode == 0
    code = "\n".join(path.read_text() for path in tmp_path.glob("*lambda*ir-with-opt.ll"))
    assert re.search(r"= load <\d+ x float>", code)
    assert not re.search(r"insertelement <\d+ x float> %", code)


@pytest.mark.parametrize("program", [ROTATED_VECTORS, SEVEN_AXES], ids=["rotated vectors", "seven axes"])
def test_sums_are_right(program):
    done = run(program)
    assert done.returncode == 0, done.stderr
