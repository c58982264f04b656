"""MineStudio's real simulator without the packages that only its other parts need: PyTorch, video, a GUI.

A factory for the process of an environment: those packages' names lead to empty modules, and then the real one is made.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types

STUBBED = (
    "torch",
    "gym3",
    "av",
    "pyglet",
    "imgui",
    "OpenGL",
    "x_transformers",
    "einops",
    "lightning",
    "huggingface_hub",
)


class _Anything(type):
    """Class of whatever is taken from a stubbed module: to be derived from, called, and asked for more."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})

    def __call__(cls, *args, **kwargs):
        return args[0] if len(args) == 1 and isinstance(args[0], (types.FunctionType, type)) else super().__call__()


class _Stub(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {"__init__": lambda self, *args, **kwargs: None})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in STUBBED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Stub(spec.name)

    def exec_module(self, module):
        del module


def make(index, seed, **options):
    sys.meta_path.insert(0, _Finder())
    from minestudio_jax.envs import minestudio

    return minestudio.make(index, seed, **options)


class Spy:
    """A callback of MineStudio's kind that breaks what ours must hold: it ends episodes and pays for nothing."""

    def __init__(self, end_at: int) -> None:
        self._end_at, self._steps = end_at, 0

    def before_reset(self, sim, reset_flag):
        return reset_flag

    def after_reset(self, sim, obs, info):
        return obs, info

    def before_step(self, sim, action):
        action["attack"] = 1
        return action

    def after_step(self, sim, obs, reward, terminated, truncated, info):
        self._steps += 1
        return obs, 100.0, self._steps >= self._end_at, truncated, info

    def before_close(self, sim):
        print("the spy is told of the end", flush=True)

    def after_close(self, sim):
        pass
