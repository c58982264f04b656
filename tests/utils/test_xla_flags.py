"""What XLA is told, and that it does it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minestudio_jax.utils.xla_flags import configure_cpu_compiler, with_cpu_options

VECTORS = "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"

# Sixteen channels of pixels that lie four apart, as Winograd's tiles take them.
STRIDED_SUMS = """
import jax
import jax.numpy as jnp
from minestudio_jax.utils.xla_flags import configure_cpu_compiler

configure_cpu_compiler()
x = jnp.ones((64, 32, 16))
factors = jnp.arange(24.0).reshape(6, 4)
print(jax.jit(lambda x, f: sum(f[:, j, None, None, None] * x[None, :, j::4] for j in range(4)))(x, factors).sum())
"""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", VECTORS),
        ("--xla_dump_to=/nowhere", f"--xla_dump_to=/nowhere {VECTORS}"),
        ("--xla_backend_extra_options=xla_mine", "--xla_backend_extra_options=xla_mine"),
        ("flags.txt", "flags.txt"),
    ],
)
def test_the_users_own_flags_stay(given, wanted):
    assert with_cpu_options(given) == wanted
    assert with_cpu_options(wanted) == wanted


def test_processes_inherit_them(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")  # else it would silence XLA for all later tests of this process
    configure_cpu_compiler()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/nowhere {VECTORS}"


def test_loops_over_channels_become_vector_instructions(tmp_path):
    """Whole vectors are loaded; no element is loaded by itself to be put into one."""
    env = {**os.environ, "XLA_FLAGS": f"--xla_dump_to={tmp_path}", "JAX_PLATFORMS": "cpu"}
    for ours in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR"):
        env.pop(ours, None)
    subprocess.run([sys.executable, "-c", STRIDED_SUMS], env=env, check=True, timeout=120)
    code = "\n".join(path.read_text() for path in tmp_path.glob("*lambda*ir-with-opt.ll"))
    assert re.search(r"= load <\d+ x float>", code)
    assert not re.search(r"insertelement <\d+ x float> %", code)


@pytest.mark.parametrize("early", [True, False], ids=["before JAX is loaded", "afterwards"])
def test_a_program_from_the_cache_is_loaded_without_a_word(tmp_path, early):
    """On CPUs with AVX-512, and only there, two errors were on the screen for each of them."""
    begin = [
        "from minestudio_jax.utils.xla_flags import configure_cpu_compiler",
        "configure_cpu_compiler()",
        "import jax",
    ]
    if not early:
        begin = [begin[2], *begin[:2]]
    program = "\n".join([*begin, "print(jax.jit(lambda x: x + 1)(1.0))"])
    env = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_PLATFORMS": "cpu",
    }
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.stderr) == ("2.0\n", "")
    assert list(tmp_path.iterdir())


@pytest.mark.optimized
def test_the_installed_jaxlib_adds_up_right():
    """Versions that do not are excluded in pyproject.toml: the norms of the last 232 vectors would be wrong."""
    vectors = np.random.default_rng(0).normal(size=(33_000, 3)).astype(np.float32)
    rotation = jnp.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    norms = jax.jit(lambda vectors, rotation: jax.vmap(lambda v: jnp.linalg.norm(rotation @ v))(vectors))
    np.testing.assert_allclose(norms(vectors, rotation), np.linalg.norm(vectors, axis=1), rtol=1e-5)
