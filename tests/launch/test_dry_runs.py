"""What each launcher would run: the right programs, in the right order, with flags that the trainer knows."""

from __future__ import annotations

import pytest

from tests.launch.scripts import CALLS, FLAGS, SLICE, TYPE, dry_run, parse, trainer_flags

TRAINERS = {
    "local_multihost.sh": 2,
    "slurm/train.sbatch": 1,
    "slurm/learner.sh": 1,
    "tpu_vm/run.sh": 1,
    "tpu_vm/keep_running.sh": 1,
    "tpu_vm/host.sh": 1,
}


def index(commands: list[list[str]], *words: str) -> int:
    """Of the first command that has all these words."""
    found = [i for i, command in enumerate(commands) if set(words) <= set(command)]
    assert found, f"{words} in none of {commands}"
    return found[0]


@pytest.mark.parametrize("script", TRAINERS)
def test_the_trainer_knows_every_flag_it_is_given(script):
    found = trainer_flags(dry_run(script, *CALLS[script]))
    assert len(found) == TRAINERS[script]
    for arguments in found:
        assert list(FLAGS) == arguments[: len(FLAGS)]
        values = parse(arguments)
        assert values["run.dir"].value == "/shared/run"
        assert values["rollout.resources"].value == {"minecraft": 4}
        if script != "tpu_vm/host.sh":
            assert values["trainer.launcher"].value == "external"


def test_local_hosts_share_one_ray_and_differ_in_their_index_alone():
    ray, *hosts = dry_run("local_multihost.sh", *CALLS["local_multihost.sh"])
    assert ray[ray.index("ray") :][:4] == ["ray", "start", "--head", "--block"]
    assert '--resources={"minecraft": 4}' in ray
    assert "RAY_AUTH_MODE=token" in ray
    for number, host in enumerate(hosts):
        assert {"JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=2", "RAY_AUTH_MODE=token"} <= set(host)
        assert f"--trainer.host_index={number}" in host
        assert {"--trainer.num_hosts=2", "--trainer.coordinator=127.0.0.1:COORDINATOR_PORT"} <= set(host)
        assert "--run.ray_address=127.0.0.1:RAY_PORT" in host
    assert len({tuple(word for word in host if "host_index" not in word) for host in hosts}) == 1


def test_local_hosts_need_no_ray_to_play_on_their_devices():
    commands = dry_run(
        "local_multihost.sh", "--hosts=3", "--no_ray", "--program=mine.train", "--", "--rollout.mode=device"
    )
    assert len(commands) == 3
    for command in commands:
        assert command[command.index("-m") + 1] == "mine.train"
        assert not any(word.startswith("--run.ray_address") for word in command)


def test_slurm_runs_ray_on_all_nodes_and_the_trainer_on_those_with_gpus():
    commands = dry_run("slurm/train.sbatch", *CALLS["slurm/train.sbatch"])
    steps = [command for command in commands if command[0] == "srun"]
    rollout, learner_ray, learner = steps
    assert {"--het-group=1", "--ntasks=4", "launch/slurm/ray_node.sh", "--role=rollout"} <= set(rollout)
    assert {"--het-group=0", "--ntasks=2", "launch/slurm/ray_node.sh", "--role=learner"} <= set(learner_ray)
    assert {"--het-group=0", "--ntasks=2", "launch/slurm/learner.sh", "--num_hosts=2"} <= set(learner)
    assert {"--coordinator=LEARNER_0:6380", "--run.ray_address=LEARNER_0:6379"} <= set(learner)
    assert commands[-1] == ["scontrol", "requeue", "JOB"]


def test_slurm_nodes_take_their_places_in_ray():
    head = {"SLURMD_NODENAME": "node0", "SLURM_CPUS_ON_NODE": "48"}
    (command,) = dry_run("slurm/ray_node.sh", "--role=learner", "--head=node0", environment=head)
    assert {"--head", "--port=6379", "--num-cpus=0", "--num-gpus=0"} <= set(command)
    (command,) = dry_run("slurm/ray_node.sh", "--role=learner", "--head=node1", environment=head)
    assert "--head" not in command
    assert {"--address=node1:6379", "--num-cpus=0"} <= set(command)
    (command,) = dry_run("slurm/ray_node.sh", "--role=rollout", "--head=node0", "--minecraft=16", environment=head)
    assert {"--address=node0:6379", "--num-cpus=48", '--resources={"minecraft": 16}'} <= set(command)


def test_a_slurm_learner_takes_its_place_among_the_hosts():
    environment = {"SLURM_PROCID": "1"}
    (command,) = dry_run("slurm/learner.sh", *CALLS["slurm/learner.sh"], environment=environment)
    assert {"--trainer.num_hosts=2", "--trainer.host_index=1", "--trainer.coordinator=node0:6380"} <= set(command)


def test_tpu_slices_are_asked_for_under_names_by_which_they_are_found_again():
    one = dry_run("tpu_vm/create.sh", *SLICE, *TYPE)
    command = one[index(one, "create")]
    assert {"--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--node-id=slice-0"} <= set(command)
    assert "--spot" not in command
    two = dry_run("tpu_vm/create.sh", *SLICE, *TYPE, "--slices=2", "--spot", "--project=mine", "--", "--network=net")
    command = two[index(two, "create")]
    assert {"--node-count=2", "--node-prefix=slice", "--spot", "--project=mine", "--network=net"} <= set(command)
    described = dry_run("tpu_vm/start_ray.sh", *SLICE)[0]
    assert {"describe", "slice-0", "--zone=zone"} <= set(described)


def test_every_command_for_tpu_hosts_reaches_all_of_them():
    for script in ("setup", "start_ray", "run", "status", "stop", "logs"):
        commands = dry_run(f"tpu_vm/{script}.sh", *CALLS[f"tpu_vm/{script}.sh"])
        to_hosts = [command for command in commands if {"ssh", "scp"} & set(command)]
        assert to_hosts
        for command in to_hosts:
            assert {"queued-resources", "--node=all", "--worker=all", "--zone=zone"} <= set(command)


def test_the_first_tpu_host_is_the_head_of_ray_and_nothing_there_touches_the_chips():
    address = "203.0.113.7"
    (*_, command) = dry_run("tpu_vm/host.sh", "ray", f"--head={address}", "--minecraft=8", "--rollout_cpus=64")
    assert {"JAX_PLATFORMS=cpu", f"--address={address}:6379", "--num-cpus=64"} <= set(command)
    assert '--resources={"minecraft": 8}' in command
    assert "--property=Restart=on-failure" in command


def test_a_tpu_learner_is_a_unit_that_is_told_to_stop_and_given_time():
    (*_, command) = dry_run("tpu_vm/host.sh", *CALLS["tpu_vm/host.sh"])
    assert command[:2] == ["sudo", "systemd-run"]
    assert {"--property=TimeoutStopSec=300", "--property=KillMode=mixed", "--property=LimitMEMLOCK=infinity"} <= set(
        command
    )


def test_a_tpu_host_that_shuts_down_ends_the_learner_before_what_its_checkpoint_needs():
    (*_, command) = dry_run("tpu_vm/host.sh", *CALLS["tpu_vm/host.sh"])
    (after,) = (word.removeprefix("--property=After=") for word in command if word.startswith("--property=After="))
    (*_, ray) = dry_run("tpu_vm/host.sh", "ray", "--head=203.0.113.7")
    (name,) = (word.removeprefix("--unit=") for word in ray if word.startswith("--unit="))
    assert {f"{name}.service", "network.target", "remote-fs.target"} == set(after.split())


def test_ray_is_started_anew_on_a_tpu_host_once_its_learner_has_ended():
    # systemd refuses to make a unit that was there before while another one names it.
    commands = dry_run("tpu_vm/host.sh", "ray", "--head=203.0.113.7")
    learner = index(commands, "sudo", "systemctl", "stop", "minestudio_jax_learner")
    assert learner < index(commands, "sudo", "systemctl", "stop", "minestudio_jax_ray") < len(commands) - 1


def test_a_tpu_host_says_all_of_its_log_or_the_end():
    assert dry_run("tpu_vm/host.sh", "log")[0][:2] == ["tail", "--lines=+1"]
    assert dry_run("tpu_vm/host.sh", "log", "--lines=20")[0][:2] == ["tail", "--lines=20"]


def test_tpus_need_no_ray_to_play_on_their_devices():
    commands = dry_run("tpu_vm/run.sh", *SLICE, "--no_ray", "--", *FLAGS)
    assert len(commands) == 1
    assert "ray_address" not in " ".join(commands[0])
    commands = dry_run("tpu_vm/keep_running.sh", *SLICE, *TYPE, "--no_ray", "--", *FLAGS)
    assert not any("host.sh ray " in word for command in commands for word in command)


def test_keep_running_does_all_that_one_does_by_hand():
    commands = dry_run("tpu_vm/keep_running.sh", *CALLS["tpu_vm/keep_running.sh"])
    remote = [word for command in commands for word in command if word.startswith("--command=")]
    order = [word.split("host.sh ")[1].split()[0] for word in remote if "host.sh" in word]
    assert order == ["install", "ray", "learner", "status", "stop_learner", "stop_ray"]
    assert index(commands, "create") < index(commands, "scp")
    assert {"delete", "slice", "--force"} <= set(commands[-1])


def test_keep_running_asks_for_tpus_with_gclouds_own_options():
    script, arguments = "tpu_vm/keep_running.sh", CALLS["tpu_vm/keep_running.sh"]
    commands = dry_run(script, "--gcloud=--network=net --reserved", *arguments)
    at = index(commands, "create")
    assert {"--network=net", "--reserved"} <= set(commands[at])
    commands[at] = [word for word in commands[at] if word not in ("--network=net", "--reserved")]
    assert commands == dry_run(script, *arguments)
