from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minestudio_jax
from minestudio_jax.envs import host_protocol
from minestudio_jax.envs.env import ArraySpec, EnvironmentFailure, EnvironmentSpec
from minestudio_jax.envs.host import Host, PermanentFailure
from minestudio_jax.envs.host_protocol import CURRENT, FINAL, MessageReader, ObservationMemory, ProtocolError, pack

PACKAGE = Path(minestudio_jax.__file__).parent


def start(memory_fd, factory="tests.scripted_env:make", **options):
    return Host(
        memory_fd, {"type": "start", "protocol": 1, "factory": factory, "index": 0, "seed": 1, "options": options}
    )


@pytest.fixture
def memory_fd():
    fd = host_protocol.new_memory_fd()
    yield fd
    os.close(fd)


def test_simulator_side_imports_neither_jax_nor_ray():
    code = "import sys, minestudio_jax.envs.host; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in modules} & {"jax", "jaxlib", "ray", "flax", "optax", "absl"}


@pytest.mark.parametrize("name", ["host.py", "host_protocol.py", "env.py"])
def test_simulator_side_is_python_3_8(name):
    ast.parse((PACKAGE / "envs" / name).read_text(), feature_version=(3, 8))


def test_messages_survive_any_cut_of_the_stream():
    messages = [{"type": "step", "action": {"camera": [60]}}, {"type": "close"}]
    stream = b"".join(map(pack, messages))
    for cut in range(len(stream)):
        reader, got = MessageReader(), []
        for part in (stream[:cut], stream[cut:]):
            reader.feed(part)
            while (message := reader.next()) is not None:
                got.append(message)
        assert got == messages


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"\0\0\0\2[]", b"\0\0\0\1{", b'\0\0\0\x0a{"type": 1}', b"\0\0\0\0"]
)
def test_garbage_is_no_message(data):
    reader = MessageReader()
    reader.feed(data)
    with pytest.raises(ProtocolError, match="not a message"):
        reader.next()


def test_an_info_too_long_for_a_message_is_refused():
    with pytest.raises(ProtocolError, match="info of the environment"):
        pack({"type": "step", "info": {"text": "x" * host_protocol.MAX_MESSAGE_BYTES}})


def test_an_info_keeps_numbers_and_drops_arrays():
    info = {"a": np.float32(0.5), "b": {"c": [np.bool_(True), None]}, "d": np.zeros(3), ("e", 1): 2}
    reader = MessageReader()
    reader.feed(pack({"type": "step", "info": info}))
    message = reader.next()
    assert message is not None
    assert message["info"] == {"a": 0.5, "b": {"c": [True, None]}, "d": None}


def test_spec_survives_its_message():
    spec = EnvironmentSpec({"image": ArraySpec((4, 5, 3), "uint8"), "gps": ArraySpec((), "float32")}, {"buttons": 8641})
    assert host_protocol.spec_from_json(host_protocol.spec_to_json(spec)) == spec


def test_both_sides_see_the_same_two_slots(memory_fd):
    spec = EnvironmentSpec({"image": ArraySpec((5, 7, 3), "uint8"), "gps": ArraySpec((3,), "float64")}, {})
    theirs = ObservationMemory(memory_fd, spec, allocate=True).slots
    ours = ObservationMemory(memory_fd, spec).slots
    for slot in (CURRENT, FINAL):
        theirs[slot]["image"][...] = slot + 1
        theirs[slot]["gps"][...] = -slot - 1.5
    for slot in (CURRENT, FINAL):
        assert (ours[slot]["image"] == slot + 1).all()
        assert (ours[slot]["gps"] == -slot - 1.5).all()


def test_last_observation_survives_the_reset(memory_fd):
    host = start(memory_fd, episode_length=2)
    slots = ObservationMemory(memory_fd, host.spec).slots
    host.reset({"type": "reset", "seed": None})
    for _ in range(2):
        reply = host.step({"type": "step", "action": {"choice": [1]}})
    assert reply["terminated"]
    assert slots[CURRENT]["image"][0, 0].tolist() == [0, 0, 1]
    host.reset({"type": "reset", "seed": None})
    assert slots[CURRENT]["image"][0, 0].tolist() == [0, 1, 0]
    assert slots[FINAL]["image"][0, 0].tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("shape", r"'image' is uint8 \[5, 5, 3\], the environment's spec declares uint8 \[4, 4, 3\]"),
        ("dtype", r"'image' is float32 \[4, 4, 3\], the environment's spec declares uint8"),
        ("nan", "the reward is nan"),
        ("four", "step must return"),
    ],
)
def test_a_step_against_the_contract_is_a_failure_that_says_what_was_expected(memory_fd, fault, says):
    host = start(memory_fd, fault=fault, fault_step=1)
    host.reset({"type": "reset", "seed": None})
    with pytest.raises(EnvironmentFailure, match=says):
        host.step({"type": "step", "action": {"choice": [1]}})


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("no.such.module:make", "cannot import 'no.such.module'"),
        ("tests.scripted_env:nothing", "has no function 'nothing'"),
        ("tests.scripted_env:make_without_spec", "must have an attribute `spec`"),
    ],
)
def test_a_factory_that_can_never_work_is_a_permanent_failure(memory_fd, factory, says):
    with pytest.raises(PermanentFailure, match=says):
        start(memory_fd, factory)
