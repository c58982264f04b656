"""Style, types and import zones of the whole package."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minestudio_jax"


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", "--no-error-summary"]]
)
def test_tool_is_content(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr


def imported_modules(path: Path) -> set[str]:
    """Names of all modules a file imports, at any level of nesting."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files_of(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((PACKAGE / folder).rglob("*.py"))]


def forbidden(files: list[Path], *prefixes: str, but: tuple[str, ...] = ()) -> list[str]:
    found = []
    for path in files:
        for name in imported_modules(path):
            bad = any(name == p or name.startswith(p + ".") for p in prefixes)
            if bad and not any(name == b or name.startswith(b + ".") for b in but):
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


# What Python 3.8 parses but does not run: function -> its newer arguments, and newer attributes.
NEWER_ARGUMENTS = {"zip": {"strict"}, "dataclass": {"slots", "kw_only"}, "NamedTemporaryFile": {"delete_on_close"}}
NEWER_ATTRIBUTES = {
    "removeprefix", "removesuffix", "is_relative_to", "with_stem", "bit_count", "add_note", "pairwise", "to_thread",
}  # fmt: skip


def newer_than_3_8(source: str) -> list[str]:
    """Uses, each with its line, of what no Python 3.8 has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in NEWER_ATTRIBUTES:
            found.append(f"line {node.lineno}: .{node.attr}")
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            newer = NEWER_ARGUMENTS.get(name, set()) & {keyword.arg for keyword in node.keywords}
            found.extend(f"line {node.lineno}: {name}({argument}=)" for argument in sorted(newer))
    return found


def test_simulator_side_runs_under_an_old_interpreter_with_numpy_alone():
    files = [PACKAGE / "__init__.py", PACKAGE / "utils/video.py", *sorted((PACKAGE / "envs").glob("*.py"))]
    files += files_of("envs/callbacks")
    names = {path.name for path in files}
    assert {"env.py", "host.py", "host_protocol.py", "actions.py", "tasks.py", "resize.py"} <= names
    assert forbidden(files, "jax", "flax", "ray", "absl", "optax", "orbax", "rich") == []
    for path in files:
        ast.parse(path.read_text(), feature_version=(3, 8))
    assert {path.name: found for path in files if (found := newer_than_3_8(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("for a, b in zip(c, d, strict=False):\n    pass", ["line 1: zip(strict=)"]),
        ("\nname = name.removeprefix('a')", ["line 2: .removeprefix"]),
        ("@dataclasses.dataclass(frozen=True, slots=True)\nclass A:\n    pass", ["line 1: dataclass(slots=)"]),
        ("sorted(zip(a, b), key=len)", []),
    ],
)
def test_what_an_old_interpreter_does_not_run_is_found(source, found):
    assert newer_than_3_8(source) == found


def test_experience_side_knows_nothing_of_learning():
    files = files_of("rollout")
    assert len(files) >= 10
    assert forbidden(files, "optax", "minestudio_jax.trainer", "minestudio_jax.run") == []


def test_learning_side_knows_nothing_of_ray():
    files = files_of("policies", "trainer", "envs/voxel")
    assert len(files) >= 15
    allowed = ("minestudio_jax.rollout.fragment",)
    assert forbidden(files, "ray", "minestudio_jax.rollout", "minestudio_jax.run", but=allowed) == []


def test_files_that_are_no_modules_are_installed_with_the_package():
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    installed = {path for pattern in packaged["minestudio_jax"] for path in PACKAGE.glob(pattern)}
    there = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert there
    assert there == installed


def test_importing_the_settings_and_programs_needs_no_jax_and_no_ray():
    code = (
        "import sys, minestudio_jax.config, minestudio_jax.train, minestudio_jax.evaluate, minestudio_jax.control, "
        "minestudio_jax.serve_voxel\n"
        "assert not {'jax', 'ray', 'flax', 'orbax'} & set(sys.modules), 'slow imports'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
