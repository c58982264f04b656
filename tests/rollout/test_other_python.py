"""Environments under an interpreter that is really another one: an old Python with an old NumPy, as simulators need it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from minestudio_jax.envs.resize import resize_bilinear
from minestudio_jax.rollout.env_pool import PoolCounters
from minestudio_jax.rollout.env_worker import PermanentEnvironmentFailure, child_environment
from tests.rollout.pools import act, act_on, receive_all
from tests.scripted_env import large_image


def test_an_environment_plays_its_episodes_under_it(make_pool, other_python, tmp_path):
    """Start, reset, step, both ends, info, and a death in between."""
    fault = {"fault": "crash", "fault_episode": 1, "fault_step": 1, "fault_once": str(tmp_path / "once")}
    pool = make_pool(
        python=other_python, factory="tests.scripted_env:make_large", settings={"resize": (128, 96)},
        end="truncated", episode_length=2, child="session", **fault,
    )  # fmt: skip
    assert pool.spec.observation["image"].shape == (128, 96, 3)
    expected = [(0, 0), (0, 1), (1, 0), (0, 0), (0, 1)]  # episode and step; the crash comes in the fourth action
    for number, (episode, step) in enumerate(expected):
        steps = pool.recv(20.0)
        np.testing.assert_array_equal(
            steps.obs[0]["image"], resize_bilinear(large_image(0, episode, step), 128, 96), err_msg=str(number)
        )
        assert steps.failed.tolist() == [number == 3]
        assert steps.truncated.tolist() == [number == 2]
        if number == 2:
            assert steps.reward.tolist() == [2.0]
            np.testing.assert_array_equal(steps.final_obs[0]["image"], resize_bilinear(large_image(0, 0, 2), 128, 96))
            (info,) = steps.info
            assert info["python"] != list(sys.version_info[:2]) or info["numpy"] != np.__version__
            assert info["numpy"] < "1.24"
            assert (info["choice"], info["count"], info["pov"]) == (1, 2, None)
        act(pool, steps)
    assert pool.counters == PoolCounters(starts=2, failures={**PoolCounters().failures, "death": 1})


def test_what_does_not_exist_there_is_told_by_that_interpreters_name(make_pool, other_python):
    with pytest.raises(PermanentEnvironmentFailure, match="cannot import 'jax'") as failure:
        make_pool(python=other_python, factory="jax:make")
    assert other_python.rpartition("/bin/")[0] in str(failure.value)


def test_images_are_resized_for_a_pool_of_this_interpreter_too(make_pool):
    pool = make_pool(num_envs=2, factory="tests.scripted_env:make_large", settings={"resize": (64, 48)})
    for step in (0, 1):
        for i, (obs, _) in receive_all(pool).items():
            np.testing.assert_array_equal(obs["image"], resize_bilinear(large_image(i, 0, step), 64, 48))
        act_on(pool, 0, 1)


def digests() -> dict[str, str]:
    """Of what the simulator's side computes; this function's source is run under the other interpreter as well."""
    import hashlib

    import numpy as np

    import minestudio_jax.envs.host
    from minestudio_jax.envs import actions, resize, task_format

    image = (np.arange(60 * 80 * 3) * 37 % 251).astype(np.uint8).reshape(60, 80, 3)
    agent = {"buttons": np.arange(0, 8641, 7)[:, None], "camera": np.arange(0, 8641, 7)[:, None] % 121}
    keyboard = actions.decode(agent)
    term = {"name": "hit", "event": "custom", "objects": ["damage_dealt"], "reward": 0.2}
    task = task_format.task_from_dict({"name": "a", "text": "b", "reward": [term], "inventory": {"dirt": 1}}, "here")
    found = {
        "resized": resize.resize_bilinear(image, 33, 32),
        "keys": np.stack([keyboard[name] for name in actions.BUTTONS]),
        "camera": np.rint(keyboard["camera"] * 1e9).astype(np.int64),
        "agent": np.stack([actions.encode(keyboard)[name] for name in ("buttons", "camera")]),
    }
    assert minestudio_jax.envs.host.PROTOCOL_VERSION
    return dict({name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in found.items()}, task=repr(task))


def test_the_simulators_side_computes_the_same_there(other_python):
    code = textwrap.dedent(inspect.getsource(digests)).replace("-> dict[str, str]", "")
    run = subprocess.run(
        [other_python, "-W", "error", "-c", f"import json\n{code}\nprint(json.dumps(digests()))"],
        env=child_environment("none", foreign=True), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == digests()
