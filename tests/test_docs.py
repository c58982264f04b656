"""The documentation tells the truth where a program can know it."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
from absl import flags

from minestudio_jax.config import Config, plays_minecraft
from minestudio_jax.config_checks import validate
from minestudio_jax.config_flags import define_flags, from_flags
from minestudio_jax.envs.start_inventory import without_commands
from minestudio_jax.envs.task_format import task_from_dict
from minestudio_jax.rollout.environments import check_factory, check_rewards, embedded_spec, factory_tasks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_table_of_settings_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate_settings", ROOT / "docs/generate_settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run: python docs/generate_settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_that_are_named_exist(page):
    known = {f"{section}.{key}" for section, keys in Config().to_dict().items() for key in keys}
    sections = "|".join(Config().to_dict())
    prose = re.sub(r"```python\n.*?```", "", page.read_text(), flags=re.DOTALL)
    named = set(re.findall(rf"(?<![\w./])(?:--)?((?:{sections})\.[a-z_]\w*)", prose))
    files = {name for name in named if name.endswith((".py", ".lock", ".log"))}
    assert named - files <= known, named - files - known


def settings_of(file: Path) -> Config:
    values = flags.FlagValues()  # of its own: what one file sets must not be there for the next
    flags.DEFINE_string("flagfile", "", "", flag_values=values)
    define_flags(values)
    values(["train", f"--flagfile={file}"])
    return from_flags(values)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.flags")), ids=lambda p: p.name)
def test_every_flag_file_is_valid_and_its_head_says_what_to_expect(file):
    """D-08: and it holds no path of somebody's machine."""
    validate(settings_of(file))
    assert not re.search(r"=/", file.read_text())
    head = file.read_text().split("--")[0] + file.read_text().split("\n\n")[0]
    for word in ("python -m minestudio_jax.train", "Hardware:", "Wall time:", "Expect:"):
        assert word in head, f"{file.name} does not say {word}"


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.flags")), ids=lambda p: p.name)
def test_the_task_of_every_flag_file_can_be_played_there_and_learnt_from(file):
    config = settings_of(file)
    if plays_minecraft(config.env):
        check_factory(config)
        (given,) = factory_tasks(config, [config.env.task])
        task = task_from_dict(given, "the flag file")
        if config.env.factory == "minerl":
            without_commands(task)
    else:
        check_rewards(config)
        embedded_spec(config)


def test_there_are_flag_files_for_minecraft_by_both_simulators():
    played = {(c.env.factory, c.env.task) for c in map(settings_of, (ROOT / "configs").glob("mine*.flags"))}
    assert played >= {
        ("minerl", "chop_tree"), ("minerl", "obtain_diamond"), ("minestudio", "hunt_cow"),
        ("minestudio", "shoot_sheep"), ("minestudio", "build_gate"),
    }  # fmt: skip


def test_code_blocks_of_the_environments_page_run():
    page = (ROOT / "docs/environments.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        scope = {}
        exec(compile(block, "docs/environments.md", "exec"), scope)
        assert scope["image"].shape == (128, 128, 3)


def test_what_is_promised_beside_minestudio_is_tested():
    """Every number in the table stands in the docstring of a test."""
    promised = set(re.findall(r"^\| (D-\d\d) ", (ROOT / "docs/minestudio.md").read_text(), re.MULTILINE))
    functions = [
        node
        for file in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    docstrings = " ".join(ast.get_docstring(function) or "" for function in functions)
    tested = set(re.findall(r"D-\d\d", docstrings))
    assert promised
    assert promised <= tested, sorted(promised - tested)


def test_the_readme_has_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    assert (
        "pip install -e . -c constraints.txt && python -m minestudio_jax.train --flagfile=configs/quickstart.flags"
        in readme
    )
    assert "pip install -e '.[test]' -c constraints.txt && pytest" in readme
    assert "pip install -e '.[test]' -c constraints.txt && pytest" in (ROOT / ".ci/run").read_text()
