"""Settings: flags, bounds, cross-checks, and that a wrong one is refused with its name, value and remedy."""

from __future__ import annotations

import dataclasses

import pytest
from absl import flags

from minestudio_jax.config import Config, ConfigError, section_types
from minestudio_jax.config_checks import validate
from minestudio_jax.config_flags import default_run_dir, define_flags, from_flags


@pytest.fixture
def parse():
    def parse(*argv):
        values = flags.FlagValues()
        flags.DEFINE_string("flagfile", "", "", flag_values=values)
        define_flags(values)
        values(["program", *argv])
        return from_flags(values)

    return parse


def changed(**sections):
    config = Config()
    return dataclasses.replace(
        config, **{s: dataclasses.replace(getattr(config, s), **keys) for s, keys in sections.items()}
    )


def test_defaults_are_valid_and_survive_json(parse):
    config = parse()
    validate(config)
    assert config == Config()
    assert Config.from_dict(config.to_dict()) == config


def test_every_setting_has_a_flag_with_help_and_bounds_on_numbers():
    defined = flags.FlagValues()
    define_flags(defined)
    settings = {
        f"{section}.{f.name}": f.metadata for section, kind in section_types().items() for f in dataclasses.fields(kind)
    }
    assert set(defined) == settings.keys()
    defaults = Config().to_dict()
    for name, metadata in settings.items():
        assert len(metadata["help"]) > 10, name
        assert defined[name].help.startswith(metadata["help"]), name
        section, key = name.split(".")
        numbers = defaults[section][key] if isinstance(defaults[section][key], list) else [defaults[section][key]]
        if any(type(number) in (int, float) for number in numbers):
            assert metadata["lower"] is not None or metadata["upper"] is not None, name


def test_command_line_and_flag_file_later_ones_win(parse, tmp_path):
    file = tmp_path / "a.flags"
    file.write_text('# a comment\n--trainer.discount=0.5\n--policy.channels=4,8\n--env.options={"trees": 2}\n')
    config = parse("--trainer.discount=0.7", f"--flagfile={file}")
    assert config.trainer.discount == 0.5
    assert config.policy.channels == (4, 8)
    assert config.env.options == {"trees": 2}
    assert parse("--logger.sinks=jsonl, tensorboard").logger.sinks == ("jsonl", "tensorboard")
    assert parse(f"--flagfile={file}", "--trainer.discount=0.7").trainer.discount == 0.7


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--trainer.discont=0.9", "trainer.discount"),
        ("--trainer.num_iterations=many", "trainer.num_iterations"),
        ("--env.options=[1]", "JSON object"),
        ("--policy.channels=a,b", "16,32,32"),
    ],
)
def test_a_flag_that_cannot_be_parsed_says_which_and_what_is_wanted(parse, argument, words):
    with pytest.raises(flags.Error, match=words.replace(".", r"\.")):
        parse(argument)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"trainer": {"discount": 1.5}}, ["trainer.discount=1.5", "1"]),
        ({"rollout": {"num_envs": 0}}, ["rollout.num_envs=0", "least"]),
        ({"replay": {"sampling": "lifo"}}, ["replay.sampling='lifo'", "fifo, uniform, runs"]),
        (
            {"replay": {"max_staleness": 1}, "trainer": {"prefetch_iterations": 2}},
            ["replay.max_staleness=1", "trainer.prefetch_iterations=2"],
        ),
        ({"replay": {"samples_per_insert": 2.0}}, ["replay.samples_per_insert=2", "replay.max_reuse=1"]),
        ({"replay": {"samples_per_insert": 0.5}}, ["replay.samples_per_insert=0.5", "drop_oldest"]),
        ({"rollout": {"fragment_length": 100}}, ["fragment_length=100", "context_length=64", "multiple"]),
        ({"rollout": {"inference_batch_size": 99}}, ["rollout.inference_batch_size=99", "num_envs=16", "lower"]),
        ({"trainer": {"gradient_accumulation": 3}}, ["gradient_accumulation=3", "batches_per_iteration=8"]),
        ({"replay": {"max_chunks": 3}}, ["max_chunks=3", "at least 32"]),
        ({"replay": {"fragments_per_chunk": 3}}, ["fragments_per_chunk=3"]),
        (
            {"replay": {"max_gib": 4.0}, "run": {"object_store_gib": 2.0}},
            ["run.object_store_gib=2", "replay.max_gib=4"],
        ),
        (
            {"run": {"object_store_gib": 2.0, "ray_address": "auto"}},
            ["run.object_store_gib=2", "--object-store-memory"],
        ),
        ({"env": {"factory": "no_colon"}}, ["env.factory='no_colon'", "package.module:function"]),
        ({"policy": {"options": {"a": 1}}}, ["policy.options", "policy.factory"]),
        ({"env": {"python": "/bin/x"}}, ["env.python='/bin/x'", "env.factory"]),
        ({"env": {"resize": (128, 128)}}, ["env.resize=128,128", "env.height and env.width"]),
        ({"env": {"factory": "a:b", "resize": (128,)}}, ["env.resize=128 ", "128,128"]),
        ({"env": {"factory": "a:b", "resize": (0, 9)}}, ["env.resize=(0, 9)", "least"]),
        (
            {"env": {"factory": "minerl", "options": {"port": 9000}}},
            ["port=9000", "one player", "16 environments", "rollout.num_envs=1"],
        ),
        ({"env": {"recycle_after_s": 60.0}}, ["env.recycle_after_s=60.0", "set env.factory"]),
        ({"policy": {"channels": ()}}, ["policy.channels", "16,32,32"]),
        ({"trainer": {"dual_clip": 1.1}}, ["trainer.dual_clip=1.1", "1.2", "0 takes it away"]),
        ({"trainer": {"off_policy": "none"}}, ["trainer.off_policy='none'", "behaviour, recompute, vtrace"]),
        ({"trainer": {"adam_eps": 0.0}}, ["trainer.adam_eps=0.0", "least"]),
        ({"trainer": {"log_ratio_range": 0.0}}, ["trainer.log_ratio_range=0.0", "least"]),
        ({"trainer": {"off_policy": "vtrace", "vtrace_clip": 0.0}}, ["trainer.vtrace_clip=0.0", "least"]),
        ({"trainer": {"vtrace_clip": 2.0}}, ["trainer.vtrace_clip=2.0", "off_policy"]),
        ({"trainer": {"reference_update": "interval"}}, ["reference_update='interval'", "reference_interval=0"]),
        (
            {"publish": {"transport": "tmpfs"}, "run": {"ray_address": "auto"}},
            ["publish.transport='tmpfs'", "object_store"],
        ),
        ({"publish": {"dtype": "bfloat16"}, "rollout": {"mode": "device"}}, ["publish.dtype='bfloat16'", "device"]),
        *(
            ({"rollout": {"mode": "device", **rollout}, "replay": replay}, [*words, "rollout.mode='device'", "leave"])
            for rollout, replay, words in (
                ({"max_wait_ms": 5.0}, {}, ["rollout.max_wait_ms=5.0"]),
                ({"max_worker_restarts": 3}, {}, ["rollout.max_worker_restarts=3"]),
                ({}, {"max_reuse": 2}, ["replay.max_reuse=2", "leave 1"]),
                ({}, {"max_staleness": 2}, ["replay.max_staleness=2"]),
                ({}, {"sampling": "runs"}, ["replay.sampling='runs'", "leave 'fifo'"]),
                ({}, {"samples_per_insert": 0.5}, ["replay.samples_per_insert=0.5"]),
                ({}, {"when_full": "drop_oldest"}, ["replay.when_full='drop_oldest'"]),
                ({}, {"fragments_per_chunk": 2}, ["replay.fragments_per_chunk=2"]),
                ({}, {"max_restarts": 0}, ["replay.max_restarts=0"]),
            )
        ),
        *(
            ({"rollout": {"mode": mode}, "trainer": {"prefetch_iterations": 2}}, ["prefetch_iterations=2", repr(mode)])
            for mode in ("device", "serial")
        ),
        ({"trainer": {"kl_reference_decay": 0.9}}, ["kl_reference_decay=0.9", "trainer.kl_reference_coef"]),
        (
            {"trainer": {"kl_reference_direction": "forward"}},
            ["kl_reference_direction='forward'", "trainer.kl_reference_coef", "leave 'reverse'"],
        ),
        ({"trainer": {"entropy_bonus_decay": 0.9}}, ["entropy_bonus_decay=0.9", "trainer.entropy_bonus_coef"]),
        ({"trainer": {"advantage_refresh": "epoch"}}, ["advantage_refresh='epoch'", "epochs_per_iteration=1"]),
        (
            {"trainer": {"use_normalized_vf": False, "value_statistics": "reference"}},
            ["trainer.value_statistics='reference'", "trainer.use_normalized_vf=false", "remove one"],
        ),
        (
            {"policy": {"factory": "a:b"}, "trainer": {"use_normalized_vf": False}},
            ["trainer.use_normalized_vf=False", "policy.factory", "remove it"],
        ),
        (
            {"policy": {"factory": "a:b"}, "trainer": {"value_statistics": "reference"}},
            ["trainer.value_statistics='reference'", "policy.factory", "remove it"],
        ),
        ({"logger": {"sinks": ("tensorbord",)}}, ["logger.sinks: 'tensorbord'", "jsonl, tensorboard, wandb"]),
        ({"logger": {"sinks": ("wandb", "wandb")}}, ["logger.sinks=wandb,wandb", "twice"]),
        ({"trainer": {"reference_interval": 5}}, ["reference_update='never'", "reference_interval=5"]),
        ({"trainer": {"reference_update": "best_return"}}, ["best_return", "trainer.kl_reference_coef"]),
        ({"trainer": {"reference_update": "ema"}}, ["reference_update='ema'", "reference_ema_decay=0"]),
        ({"trainer": {"reference_ema_decay": 0.9}}, ["reference_update='never'", "reference_ema_decay=0.9"]),
        ({"trainer": {"burn_in": 64}}, ["trainer.burn_in=64", "rollout.fragment_length=64", "lower"]),
        ({"trainer": {"num_hosts": 2}}, ["trainer.num_hosts=2", "trainer.launcher", "external"]),
        ({"trainer": {"launcher": "ray"}}, ["trainer.launcher='ray'", "trainer.num_hosts"]),
        (
            {"trainer": {"launcher": "external", "num_hosts": 2, "host_index": 2, "coordinator": "a:1"}},
            ["trainer.host_index=2", "trainer.num_hosts=2", "0 to 1"],
        ),
        ({"trainer": {"launcher": "external", "host_index": 1}}, ["host_index=1", "trainer.coordinator"]),
        (
            {"trainer": {"launcher": "external", "num_hosts": 1, "host_index": 0, "coordinator": "there"}},
            ["trainer.coordinator='there'", "host:port"],
        ),
        ({"trainer": {"coordinator": "a:1"}}, ["trainer.coordinator='a:1'", "trainer.launcher='none'"]),
        ({"trainer": {"host_resources": {"GPU": 1}}}, ["trainer.host_resources", "trainer.launcher='none'"]),
        (
            {"rollout": {"mode": "serial", "num_rollout_workers": 2}},
            ["rollout.num_rollout_workers=2 has no effect with rollout.mode='serial'"],
        ),
        (
            {"rollout": {"mode": "serial", "synchronous": True}},
            ["rollout.synchronous has no effect with rollout.mode='serial'"],
        ),
        (
            {"rollout": {"mode": "device", "num_rollout_workers": 2}},
            ["rollout.num_rollout_workers=2 has no effect with rollout.mode='device'"],
        ),
        (
            {"rollout": {"mode": "device"}, "env": {"factory": "json:loads"}},
            ["env.factory='json:loads' needs rollout workers"],
        ),
        (
            {"trainer": {"launcher": "external"}, "rollout": {"mode": "serial"}},
            ["rollout.mode='serial'", "trainer.launcher='external'"],
        ),
        ({"rollout": {"resources": {"minecraft": 0}}}, ["rollout.resources", "'minecraft'", "above 0"]),
        ({"rollout": {"resources": {"CPU": 2}}}, ["rollout.resources", "rollout.num_cpus_per_worker"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(sections, words):
    """D-22, D-63: those that are accepted have an effect."""
    with pytest.raises(ConfigError) as error:
        validate(changed(**sections))
    for word in words:
        assert word in str(error.value)


def test_settings_of_how_much_workers_hold_go_with_every_mode():
    """One flag file for all of them: without workers, and without reading ahead, these bounds are kept anyway."""
    for mode in ("ray", "device", "serial"):
        validate(
            changed(
                rollout={"mode": mode, "to_send_queue_size": 1},
                replay={"max_chunks": 32, "max_gib": 1.0},
                trainer={"prefetch_iterations": 0},
            )
        )


def test_an_image_is_resized_only_if_a_size_is_given(parse):
    for argument, size in (("--env.resize=128,96", (128, 96)), ("--env.resize=", ())):
        config = parse("--env.factory=a:b", argument)
        validate(config)
        assert config.env.resize == size
        assert Config.from_dict(config.to_dict()) == config


def test_one_environment_may_play_with_an_engine_that_is_there():
    alone = {"num_envs": 1, "inference_batch_size": 1}
    validate(changed(env={"factory": "minerl", "options": {"port": 9000}}, rollout=alone))
    with pytest.raises(ConfigError, match="2 environments"):
        validate(
            changed(env={"factory": "minerl", "options": {"port": 9000}}, rollout={**alone, "num_rollout_workers": 2})
        )
    for env in ({"factory": "minerl", "options": {"port": 0}}, {"factory": "my.own:make", "options": {"port": 9000}}):
        validate(changed(env=env))


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError, match=r"discount.*gae_lambda"):
        validate(changed(trainer={"discount": 2.0, "gae_lambda": 2.0}))


def test_unknown_keys_in_a_stored_config_name_the_nearest():
    """D-63."""
    with pytest.raises(ConfigError, match=r"trainer\.discont.*'discount'"):
        Config.from_dict({"trainer": {"discont": 1}})
    with pytest.raises(ConfigError, match="'trainer'"):
        Config.from_dict({"trainr": {}})


def test_the_run_is_named_after_its_flag_file():
    assert default_run_dir(["x", "--flagfile=configs/quickstart.flags"]) == "runs/quickstart"
    assert default_run_dir(["x", "-flagfile", "a/b.flags", "--run.seed=1"]) == "runs/b"
    assert default_run_dir(["x"]) == "runs/train"
