"""The run directory: made, continued, moved aside, and never somebody else's."""

from __future__ import annotations

import dataclasses

import pytest

from minestudio_jax.config import Config, ConfigError, RunConfig, TrainerConfig
from minestudio_jax.run.run_directory import RunDirectory, read_config, refuse_unusable


def config_for(path, **run):
    return Config(run=RunConfig(dir=str(path), **run))


def test_a_new_directory_holds_the_resolved_settings(tmp_path):
    config = config_for(tmp_path / "a" / "run")
    RunDirectory(config).close()
    assert read_config(tmp_path / "a" / "run") == config


def test_continuing_tells_which_settings_changed(tmp_path):
    config = config_for(tmp_path / "run")
    RunDirectory(config).close()
    again = dataclasses.replace(config, trainer=TrainerConfig(learning_rate=1.0))
    directory = RunDirectory(again)
    directory.close()
    assert directory.changed_settings == ["trainer.learning_rate: 0.0003 -> 1.0"]


def test_restart_moves_the_old_run_aside_whole(tmp_path):
    RunDirectory(config_for(tmp_path / "run")).close()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    for _ in range(2):
        RunDirectory(config_for(tmp_path / "run", restart=True)).close()
    aside = sorted(p for p in tmp_path.iterdir() if p.name.startswith("run.before-"))
    assert len(aside) == 2
    assert [(p / "notes.txt").exists() for p in aside].count(True) == 1
    assert not (tmp_path / "run" / "notes.txt").exists()


@pytest.mark.parametrize("restart", [False, True])
def test_a_directory_of_something_else_is_left_alone(tmp_path, restart):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="not a run's"):
        RunDirectory(config_for(tmp_path, restart=restart))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_processes_cannot_use_one_directory(tmp_path):
    directory = RunDirectory(config_for(tmp_path / "run"))
    for restart in (False, True):
        with pytest.raises(ConfigError, match="in use"):
            RunDirectory(config_for(tmp_path / "run", restart=restart))
    directory.close()
    RunDirectory(config_for(tmp_path / "run")).close()


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.dir="):
        RunDirectory(config_for(tmp_path / "file" / "run"))
    with pytest.raises(ConfigError, match="is a file"):
        RunDirectory(config_for(tmp_path / "file"))


def test_what_cannot_become_a_directory_is_refused_beforehand_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"run.dir='.*/file/deep/run' cannot be written .*--run.dir"):
        refuse_unusable(tmp_path / "file" / "deep" / "run")
    with pytest.raises(ConfigError, match=r"run.dir='.*/file' is a file: name a directory"):
        refuse_unusable(tmp_path / "file")
    refuse_unusable(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_another_process_uses_is_refused_beforehand_and_what_it_used_is_not(tmp_path):
    """And whoever asks does not keep it."""
    directory = RunDirectory(config_for(tmp_path / "run"))
    with pytest.raises(ConfigError, match="is in use by"):
        refuse_unusable(tmp_path / "run")
    directory.close()
    refuse_unusable(tmp_path / "run")
    RunDirectory(config_for(tmp_path / "run")).close()


def test_reading_a_run_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        read_config(tmp_path)


def test_a_run_that_goes_on_collects_in_other_worlds_than_at_its_last_start(tmp_path):
    config = config_for(tmp_path / "run", seed=3)
    directory = RunDirectory(config)
    seeds = [directory.going_on(config).run.seed]
    assert directory.last_checkpoint is None
    for iteration in (0, 20, 100, 40):
        (directory.path / "checkpoints" / str(iteration)).mkdir(parents=True)
        seeds.append(directory.going_on(config).run.seed)
    assert directory.last_checkpoint == 100
    directory.close()
    assert seeds[0] == 3  # as it was told
    assert seeds[3] == seeds[4]  # the last checkpoint is the one it goes on from
    assert len(set(seeds)) == 4
