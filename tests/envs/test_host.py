from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from minestudio_jax.envs import host as host_module
from minestudio_jax.envs import host_protocol
from minestudio_jax.envs.env import ArraySpec, EnvironmentFailure, EnvironmentSpec
from minestudio_jax.envs.host import Host, PermanentFailure, Watchdog, failed_message, resized_spec
from minestudio_jax.envs.host_protocol import (
    CURRENT,
    FINAL,
    PROTOCOL_VERSION,
    ObservationMemory,
    ProtocolError,
    StepOutcome,
    StepRequests,
    pack,
    pack_outcome,
    unpack,
    unpack_outcome,
)
from minestudio_jax.envs.resize import resize_bilinear
from tests.scripted_env import large_image

STEP = StepRequests(["choice"]).pack({"choice": np.ones((1, 1), np.int32)})[0]


def start(memory_fd, factory="tests.scripted_env:make", resize=None, **options):
    request = {
        "type": "start",
        "protocol": PROTOCOL_VERSION,
        "factory": factory,
        "index": 0,
        "seed": 1,
        "resize": resize,
    }
    return Host(memory_fd, {**request, "options": options})


@pytest.fixture
def memory_fd():
    fd = host_protocol.new_memory_fd()
    yield fd
    os.close(fd)


def test_simulator_side_imports_neither_jax_nor_ray():
    code = "import sys, minestudio_jax.envs.host; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in modules} & {"jax", "jaxlib", "ray", "flax", "optax", "absl"}


def test_messages_survive_the_way():
    for message in ({"type": "reset", "seed": 7}, {"type": "close"}):
        assert unpack(pack(message)) == message
    for outcome in (
        StepOutcome(0.1 + 0.2, False, False, {}),
        StepOutcome(-1e38, True, False, {"success": True, "text": "Äpfel"}),
        StepOutcome(0.0, False, True, {}),
    ):
        assert unpack_outcome(pack_outcome(outcome)) == outcome
    for reward in (float("nan"), float("-inf"), 1e39):  # the last is infinite in float32
        with pytest.raises(ProtocolError, match="not a message"):
            unpack_outcome(pack_outcome(StepOutcome(reward, False, False, {})))


def test_step_requests_are_as_documented():
    requests = StepRequests(["camera", "buttons"])
    sent = requests.pack({"camera": np.array([[60], [3]], np.int32), "buttons": np.array([[8640], [-1]], np.int32)})
    assert sent[0] == b"S" + b"\0" * 4 + (8640).to_bytes(4, "little") + (60).to_bytes(4, "little")
    version, action = requests.unpack(sent[1])
    assert version == 0
    (only,) = requests.pack({"camera": np.array([[1]], np.int32), "buttons": np.array([[2]], np.int32)}, version=258)
    assert only == b"S" + b"\2\1\0\0" + b"\2\0\0\0" + b"\1\0\0\0"
    assert requests.unpack(only)[0] == 258
    assert {name: (a.dtype, a.shape, a[0]) for name, a in action.items()} == {
        "camera": (np.int32, (1,), 3), "buttons": (np.int32, (1,), -1)
    }  # fmt: skip
    with pytest.raises(ProtocolError, match="not a step with the components"):
        requests.unpack(sent[0][:-1])


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"[]", b"{", b'{"type": 1}', b"\xff\xfe"])
def test_garbage_is_no_message(data):
    with pytest.raises(ProtocolError, match="not a message"):
        unpack(data)
    with pytest.raises(ProtocolError, match="not a message"):
        unpack_outcome(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"A", b"A" + b"\0" * 8, b"A" + b"\0" * 8 + b"\4", b"A" + b"\xff" * 8 + b"\0", b"A" + b"\0" * 9 + b"[]"],
)
def test_garbage_is_no_outcome(data):
    """Too short, unknown flags, a reward that is no number, an info that is no object."""
    with pytest.raises(ProtocolError, match="not a message"):
        unpack_outcome(data)


def test_an_info_too_long_for_a_message_is_refused():
    info = {"text": "x" * host_protocol.MAX_MESSAGE_BYTES}
    with pytest.raises(ProtocolError, match="info of the environment"):
        pack_outcome(StepOutcome(0.0, True, False, info))


def test_only_the_info_of_an_episodes_last_step_travels():
    info = {"a": np.float32(0.5), "b": {"c": [np.bool_(True), None]}, "d": np.zeros(3), ("e", 1): 2}
    assert len(pack_outcome(StepOutcome(1.0, False, False, info))) == 10
    outcome = unpack_outcome(pack_outcome(StepOutcome(1.0, False, True, info)))
    assert outcome.info == {"a": 0.5, "b": {"c": [True, None]}, "d": None}


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
        outcome = host.step(STEP)
    assert outcome.terminated
    assert slots[CURRENT]["image"][0, 0].tolist() == [0, 0, 1]
    host.reset({"type": "reset", "seed": None})
    assert slots[CURRENT]["image"][0, 0].tolist() == [0, 1, 0]
    assert slots[FINAL]["image"][0, 0].tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("fault", "cause", "says"),
    [
        ("shape", "garbage", r"'image' is uint8 \[5, 5, 3\], the environment's spec declares uint8 \[4, 4, 3\]"),
        ("dtype", "garbage", r"'image' is float32 \[4, 4, 3\], the environment's spec declares uint8"),
        ("nan", "garbage", "the reward is nan"),
        ("four", "garbage", "step must return"),
        ("error", "error_info", "an error in its info: java.net.SocketException"),
    ],
)
def test_a_step_against_the_contract_is_a_failure_that_says_what_was_expected(memory_fd, fault, cause, says):
    host = start(memory_fd, fault=fault, fault_step=1)
    host.reset({"type": "reset", "seed": None})
    with pytest.raises(EnvironmentFailure, match=says) as failure:
        host.step(STEP)
    assert failed_message(failure.value)["cause"] == cause


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


def test_images_are_resized_before_they_are_shared(memory_fd):
    host = start(memory_fd, factory="tests.scripted_env:make_large", resize=[128, 120], episode_length=1)
    assert host.spec.observation["image"] == ArraySpec((128, 120, 3), "uint8")
    slots = ObservationMemory(memory_fd, host.spec).slots
    host.reset({"type": "reset", "seed": None})
    np.testing.assert_array_equal(slots[CURRENT]["image"], resize_bilinear(large_image(0, 0, 0), 128, 120))
    host.step(STEP)
    np.testing.assert_array_equal(slots[FINAL]["image"], resize_bilinear(large_image(0, 0, 1), 128, 120))


def test_what_has_no_image_cannot_be_resized():
    for observation in ({}, {"image": ArraySpec((4, 4), "uint8")}, {"image": ArraySpec((4, 4, 3), "float32")}):
        with pytest.raises(PermanentFailure, match=r"env\.resize=8,9 needs an observation 'image'"):
            resized_spec(EnvironmentSpec(observation, {}), 8, 9)


def test_the_alarm_is_set_anew_only_when_it_would_come_too_early(monkeypatch):
    now, alarms = [100.0], []
    monkeypatch.setattr(host_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(host_module.faulthandler, "dump_traceback_later", lambda s, file: alarms.append(now[0] + s))
    monkeypatch.setattr(host_module.faulthandler, "cancel_dump_traceback_later", lambda: alarms.append(None))
    watchdog = Watchdog({"reset": 200.0, "step": 100.0})
    watchdog.begin("reset")
    assert alarms == [280.0]
    for _ in range(600):
        now[0] += 0.02
        watchdog.begin("step")
        assert 85.0 <= alarms[-1] - now[0] <= 90.001
    assert len(alarms) == 4
    watchdog.rest()
    watchdog.begin("step")
    assert alarms[-2] is None
    assert alarms[-1] == pytest.approx(now[0] + 90.0)
