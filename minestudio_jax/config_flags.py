"""The settings as absl flags `--<section>.<key>=value`, on the command line or in flag files; the later one wins."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from absl import flags

from minestudio_jax.config import Config, section_types


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one absl flag per setting, named `--<section>.<key>`."""
    for section, section_type in section_types().items():
        types = get_type_hints(section_type)
        defaults = section_type()
        for f in dataclasses.fields(section_type):
            name, default = f"{section}.{f.name}", getattr(defaults, f.name)
            define = _FLAG_OF_TYPE[types[f.name]]
            define(name, default, f.metadata["help"], flag_values)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Config:
    """The settings as parsed; not yet validated."""
    sections = {}
    for section, section_type in section_types().items():
        sections[section] = section_type(
            **{f.name: flag_values[f"{section}.{f.name}"].value for f in dataclasses.fields(section_type)}
        )
    return Config(**sections)


class _JsonObjectParser(flags.ArgumentParser[dict[str, Any]]):
    """Parses a JSON object."""

    syntactic_help = "a JSON object"

    def parse(self, argument: Any) -> dict[str, Any]:
        if isinstance(argument, dict):
            return argument
        try:
            value = json.loads(argument)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error}); give an object such as '{{\"name\": 1}}'") from None
        if not isinstance(value, dict):
            raise ValueError("not a JSON object; give one such as '{\"name\": 1}'")
        return value


class _IntegersParser(flags.ArgumentParser[tuple[int, ...]]):
    """Parses integers separated by commas."""

    syntactic_help = "integers separated by commas"

    def parse(self, argument: Any) -> tuple[int, ...]:
        if isinstance(argument, tuple):
            return argument
        try:
            return tuple(int(part) for part in argument.split(",") if part.strip())
        except ValueError:
            raise ValueError("not integers separated by commas, such as 16,32,32") from None


class _WordsParser(flags.ArgumentParser[tuple[str, ...]]):
    """Parses words separated by commas."""

    syntactic_help = "words separated by commas"

    def parse(self, argument: Any) -> tuple[str, ...]:
        if isinstance(argument, tuple):
            return argument
        return tuple(part.strip() for part in argument.split(",") if part.strip())


class _JsonSerializer(flags.ArgumentSerializer[Any]):
    def serialize(self, value: Any) -> str:
        return json.dumps(value, sort_keys=True)


class _ListSerializer(flags.ArgumentSerializer[Any]):
    def serialize(self, value: Any) -> str:
        return ",".join(str(v) for v in value)


def _define_with(parser: Any, serializer: Any) -> Callable[..., Any]:
    return lambda name, default, help, fv: flags.DEFINE(parser, name, default, help, fv, serializer)


_FLAG_OF_TYPE: dict[Any, Callable[..., Any]] = {
    str: lambda name, default, help, fv: flags.DEFINE_string(name, default, help, fv),
    bool: lambda name, default, help, fv: flags.DEFINE_bool(name, default, help, fv),
    int: lambda name, default, help, fv: flags.DEFINE_integer(name, default, help, flag_values=fv),
    float: lambda name, default, help, fv: flags.DEFINE_float(name, default, help, flag_values=fv),
    dict[str, Any]: _define_with(_JsonObjectParser(), _JsonSerializer()),
    tuple[int, ...]: _define_with(_IntegersParser(), _ListSerializer()),
    tuple[str, ...]: _define_with(_WordsParser(), _ListSerializer()),
}


def default_run_dir(argv: Sequence[str]) -> str:
    """`runs/<name of the last flag file on the command line>`, or `runs/train` without one."""
    names = [arg.split("=", 1)[1] for arg in argv if arg.lstrip("-").startswith("flagfile=")]
    names += [b for a, b in itertools.pairwise(argv) if a.lstrip("-") == "flagfile"]
    return str(Path("runs") / (Path(names[-1]).stem if names else "train"))
