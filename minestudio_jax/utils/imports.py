"""Factories named in a flag."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from minestudio_jax.config import ConfigError


def load_factory(setting: str, path: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; the current directory is searched as well.

    Args:
      setting: name of the setting, for the error.
      path: its value.
    Raises:
      ConfigError: there is no such module or function.
    """
    module_name, _, function_name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{setting}={path!r}: cannot import {module_name!r} ({error}); it must be installed or lie in the "
            "directory the program is started from"
        ) from error
    factory = getattr(module, function_name, None)
    if not callable(factory):
        raise ConfigError(f"{setting}={path!r}: {module_name!r} has no function {function_name!r}")
    return factory
