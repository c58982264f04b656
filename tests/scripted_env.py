"""A scripted environment for tests of the process side: NumPy only, runs under any interpreter.

Observation "image" is uint8 [4, 4, 3], filled with (index, episode, step); the reward of a step is
100 * index + 10 * episode + step, so that a test can tell where every number came from.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

from minestudio_jax.envs.env import ArraySpec, EnvironmentSpec, MisconfiguredEnvironment


class ScriptedEnv:
    """Misbehaves as told.

    Args:
      episode_length: steps.
      end: "terminated" or "truncated".
      step_s: seconds a step takes.
      fault: what goes wrong in `reset` or at step `fault_step` of episode `fault_episode`; see `_misbehave`.
      fault_index: the environment that misbehaves.
      fault_once: path; the fault strikes only while there is no such file, and makes it.
      child: start a process, "group" in this process group or "session" in its own one, as simulators do.
      diary: path of a file to which "<what> <index> <time>" is appended at "begin", "ready" (first reset) and "end".
      ballast_mib: memory that the child process of environment `ballast_index` holds.
      chatter: lines printed a step.
      start_s, close_s: seconds that the constructor takes, and close of the environments `slow_to_close`.
    """

    def __init__(
        self, index, seed, episode_length=3, end="terminated", step_s=0.0, fault="", fault_in="step", fault_step=2,
        fault_episode=0, fault_index=0, fault_once="", child="", height=4, task="", diary="", ballast_mib=0,
        ballast_index=0, chatter=0, close_s=0.0, slow_to_close=(0,), start_s=0.0,
    ):  # fmt: skip
        self.spec = EnvironmentSpec({"image": ArraySpec((height, 4, 3), "uint8")}, {"choice": 4})
        self._index, self._seed, self._reset_seed, self._height = index, seed, None, height
        self._episode_length, self._end, self._step_s = episode_length, end, step_s
        self._fault = fault if index == fault_index else ""
        self._fault_in, self._fault_at, self._fault_once = fault_in, (fault_episode, fault_step), fault_once
        self._episode, self._task, self._diary, self._chatter = -1, task, diary, chatter
        self.policy_version = -1
        self._close_s = close_s if index in slow_to_close else 0.0
        self._write_diary("begin")
        time.sleep(start_s)
        self._children = []
        if child:
            held = f"held = bytearray(b'x' * {ballast_mib << 20 if index == ballast_index else 0})"
            sleep = [sys.executable, "-c", "import time; " + held + "; time.sleep(600)"]
            self._children.append(subprocess.Popen(sleep, start_new_session=child == "session"))
        print(f"environment {index} speaks", flush=True)
        if self._fault_in == "start":
            self._misbehave()

    def reset(self, seed=None):
        self._episode += 1
        self._step = 0
        if self._episode == 0:
            self._write_diary("ready")
        if seed is not None:
            self._reset_seed = seed
        if self._fault_in == "reset" and self._fault_at[0] == self._episode:
            self._misbehave()
        return self._observation(), {}

    def step(self, action):
        time.sleep(self._step_s)
        for line in range(self._chatter):
            print(f"line {line} of step {self._step}", flush=True)
        self._step += 1
        obs, reward = self._observation(), float(100 * self._index + 10 * self._episode + self._step)
        wrong = {}
        if self._fault_in == "step" and self._fault_at == (self._episode, self._step):
            wrong = self._misbehave()
            if wrong == "four":
                return obs, reward, False, {}
            obs, reward = {"image": wrong.get("image", obs["image"])}, wrong.get("reward", reward)
        ended = self._step == self._episode_length
        info = {
            "choice": int(action["choice"][0]),
            "task": self._task,
            "policy_version": self.policy_version,
            "seed": self._seed,
            "reset_seed": self._reset_seed,
            "count": np.int64(self._step),
            "pov": obs["image"],
            "pid": os.getpid(),
            "children": [child.pid for child in self._children],
            "python": list(sys.version_info[:2]),
            "numpy": np.__version__,
            "cpus": sorted(os.sched_getaffinity(0)),
        }
        if wrong.get("error"):
            info["error"] = wrong["error"]
        return obs, reward, ended and self._end == "terminated", ended and self._end == "truncated", info

    def close(self):
        time.sleep(self._close_s)
        print("closed in good order", flush=True)
        self._write_diary("end")

    def _write_diary(self, what):
        if self._diary:
            with open(self._diary, "a") as diary:
                diary.write(f"{what} {self._index} {time.monotonic()}\n")

    def _observation(self):
        image = np.empty((self._height, 4, 3), np.uint8)
        image[:] = (self._index, self._episode % 256, self._step % 256)
        return {"image": image}

    def _misbehave(self):
        if not self._fault:
            return {}
        if self._fault_once:
            if os.path.exists(self._fault_once):
                return {}
            with open(self._fault_once, "w"):
                pass
        if self._fault == "crash":
            os._exit(7)
        if self._fault == "hang":
            time.sleep(600)
        if self._fault == "misconfigured":
            raise MisconfiguredEnvironment("the scripted misconfiguration")
        if self._fault == "exception":
            raise RuntimeError("the scripted exception")
        if self._fault == "garbage":
            # Whoever writes into the socket: its number is the program's first argument.
            os.write(int(sys.argv[1]), b"GET / HTTP/1.1\r\n\r\n")
            time.sleep(600)
        return {
            "shape": {"image": np.zeros((5, 5, 3), np.uint8)},
            "dtype": {"image": np.zeros((4, 4, 3), np.float32)},
            "nan": {"reward": float("nan")},
            "huge": {"reward": 1e39},
            "four": "four",
            "error": {"error": "java.net.SocketException"},
        }.get(self._fault, {})


def make(index, seed, **options):
    return ScriptedEnv(index, seed, **options)


def make_of_different_sizes(index, seed):
    return ScriptedEnv(index, seed, height=4 + index)


class LargeEnv(ScriptedEnv):
    """The same with images of MineRL's size, in which every pixel differs; [0, 0] and so on as above."""

    def __init__(self, index, seed, **options):
        ScriptedEnv.__init__(self, index, seed, **options)
        self.spec = EnvironmentSpec({"image": ArraySpec((360, 640, 3), "uint8")}, {"choice": 4})

    def _observation(self):
        return {"image": large_image(self._index, self._episode, self._step)}


def large_image(index, episode, step):
    rows, columns, channels = np.ogrid[:360, :640, :3]
    return (rows * 7 + columns * 3 + channels * 50 + index + 11 * episode + 29 * step).astype(np.uint8)


def make_large(index, seed, **options):
    return LargeEnv(index, seed, **options)


def make_without_spec(index, seed):
    return object()
