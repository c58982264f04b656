"""Compiled programs on disk, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys

from minestudio_jax.utils.compilation_cache import use_compilation_cache

_COMPILE = """
import sys
from pathlib import Path
from minestudio_jax.utils.compilation_cache import use_compilation_cache
use_compilation_cache(Path(sys.argv[1]))
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones((64, 64))).block_until_ready()
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    def compiled():
        env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        command = [sys.executable, "-c", _COMPILE, str(tmp_path)]
        return int(subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=100).stdout)

    assert compiled() == 0
    assert len(list(tmp_path.iterdir())) == 1  # one folder for this kind of machine
    assert compiled() > 0


def test_a_folder_that_was_chosen_otherwise_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
    assert use_compilation_cache(tmp_path / "ours") == tmp_path / "mine"
    assert not (tmp_path / "ours").exists()
