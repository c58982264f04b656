from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import jax
import numpy as np
import pytest

from minestudio_jax import serve_voxel
from minestudio_jax.envs.actions import BUTTONS
from minestudio_jax.envs.resize import resize_bilinear
from minestudio_jax.envs.voxel import malmo_server
from minestudio_jax.envs.voxel.malmo_game import VoxelGame
from minestudio_jax.envs.voxel.malmo_server import Fault, MalmoServer
from tests.envs.malmo_client import MalmoClient
from tests.envs.scripted_game import ScriptedGame, Signature, read_signature

SMALL = {"size": 24, "height": 20, "hills": 0}


@contextmanager
def serving(game, **options):
    with MalmoServer(game, **options) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            server.stop()
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def program(*arguments, module="tests.envs.scripted_game"):
    """The process and its port, once it says that it is ready."""
    command = [sys.executable, "-m", module, "--port=0", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "CLIENT enter state: DORMANT" in line:
                break
        ports = [line for line in lines if "***** Start MalmoEnvServer on port " in line]
        assert ports, lines
        yield process, int(ports[0].split(" port ")[1])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def game():
    return VoxelGame("chop_tree", "vanilla", **SMALL)


def begun(port, **mission):
    client = MalmoClient(port)
    assert client.quit() == 1
    assert client.begin(**mission) == 1
    return client


# The protocol, with a game whose frames say what they are.


def test_a_mission_round():
    with serving(ScriptedGame()) as server, begun(server.port, seed=7) as client:
        image, info, done = client.peek()
        assert read_signature(image) == Signature(7, 0, 0, 0, 0, 0)
        assert (done, info["isGuiOpen"], "mine_block" in info) == (0, False, False)
        image, reward, done, info = client.step("forward 1", "jump 0", "hotbar.3 1", "ESC 1", "camera -2.5 10.0")
        keys = sum(1 << BUTTONS.index(name) for name in ("forward", "hotbar.3"))
        assert read_signature(image) == Signature(7, 0, 1, keys, -250, 1000)
        assert (reward, done, info["mine_block"]) == (0.0, 0, {"oak_log": 1})


def test_the_bottom_row_comes_first():
    with serving(ScriptedGame()) as server, begun(server.port) as client:
        client.send("<Peek/>")
        raw = np.frombuffer(client.receive(), np.uint8).reshape(36, 64, 3)
        assert read_signature(raw) is None
        assert read_signature(raw[::-1]) is not None


def test_a_signature_survives_resizing_and_no_invented_frame_has_one():
    game = ScriptedGame()
    with serving(game) as server, begun(server.port, seed=-3, start="") as client:
        client.size = None
        assert client.begin(seed=-3) == 1
        image, *_ = client.step("attack 1", "camera 0 0")
        assert image.shape == (360, 640, 3)
        assert read_signature(resize_bilinear(image, 128, 128)) == read_signature(image)
    noise = np.random.default_rng(0).integers(0, 256, (100, 36, 64, 3), np.uint8)
    assert all(read_signature(image) is None for image in noise)


def test_the_seed_of_the_token_wins_and_without_any_they_differ():
    def seed_of(client):
        return read_signature(client.peek()[0]).seed

    with serving(ScriptedGame()) as server, MalmoClient(server.port) as client:
        client.begin(seed=5, start="<WorldSeed>9</WorldSeed>")
        assert seed_of(client) == 5
        client.begin(start="<WorldSeed>9</WorldSeed>")
        assert seed_of(client) == 9
        client.begin()
        first = seed_of(client)
        client.begin()
        assert seed_of(client) != first


def test_the_info_holds_what_the_mission_observes():
    with serving(ScriptedGame()) as server, MalmoClient(server.port) as client:
        client.begin(observations="")
        assert set(client.peek()[1]) == {"isGuiOpen", "health", "food_level"}
        client.begin(observations="<ObservationFromFullInventory/>")
        assert "inventory" in client.peek()[1]
        assert "xpos" not in client.peek()[1]
        client.begin(observations="<ObservationFromFullStats/>")
        assert {"xpos", "life_stats"} <= set(client.peek()[1])
        assert not {"inventory", "equipped_items"} & set(client.peek()[1])


def test_a_step_without_info_has_two_replies():
    with serving(ScriptedGame()) as server, begun(server.port) as client:
        client.send("<StepClient1>forward 1</StepClient1 >")
        assert len(client.receive()) == 36 * 64 * 3
        assert len(client.receive()) == 10
        assert client.step()[3]["mine_block"] == {"oak_log": 2}


def test_death_and_the_time_limit_end_a_mission():
    with serving(ScriptedGame(episode_length=3)) as server, begun(server.port) as client:
        assert [client.step()[2] for _ in range(3)] == [0, 0, 1]
        client.begin(server='<ServerQuitFromTimeUp timeLimitMs="100" description="out_of_time"/>')
        assert [client.step()[2] for _ in range(2)] == [0, 1]


def test_chat_reaches_the_game():
    game = ScriptedGame()
    with serving(game) as server, begun(server.port) as client:
        client.step("chat /give @p minecraft:dirt 3", "attack 1")
        assert game.chat == ["/give @p minecraft:dirt 3"]


def test_find_and_echo():
    with serving(ScriptedGame()) as server, MalmoClient(server.port) as client:
        client.send("<Find>u:1:0</Find>")
        assert client.number() == server.port
        client.send("<Echo>here</Echo>")
        assert client.receive() == b"<Echo><Echo>here</Echo></Echo>"


def test_exit_ends_the_server():
    with MalmoServer(ScriptedGame()) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        with begun(server.port), MalmoClient(server.port) as other:  # while somebody plays
            other.send("<Exit>NOW</Exit>")
            assert other.number() == 1
            thread.join(10)
        assert not thread.is_alive()


def test_many_episodes_each_on_a_connection_of_its_own():
    with serving(ScriptedGame()) as server:
        for episode in range(50):
            client = begun(server.port, seed=episode)
            client.step()
            image, *_ = client.step()
            assert read_signature(image)[:3] == (episode, episode, 2)
            if episode % 2:
                client.send("<Disconnect/>")  # or it just goes
            client.socket.close()
        assert threading.active_count() < 20


def test_two_clients_take_turns(monkeypatch):
    with serving(ScriptedGame()) as server, begun(server.port, seed=1) as one, MalmoClient(server.port) as other:
        assert other.quit() == 1  # nothing of the first one's
        with monkeypatch.context() as patch:
            patch.setattr(malmo_server, "_BUSY_S", 0.1)
            assert other.begin(seed=2) == 0  # Minecraft is busy
        assert read_signature(one.step()[0])[:3] == (1, 0, 1)
        one.send("<Disconnect/>")
        assert other.begin(seed=2) == 1
        assert read_signature(other.step()[0])[:3] == (2, 1, 1)


def test_who_has_no_mission_cannot_play_the_others():
    with serving(ScriptedGame()) as server, begun(server.port, seed=1) as one, MalmoClient(server.port) as other:
        other.send("<StepClient0>forward 1</StepClient0 >")
        assert other.receive() is None
        assert read_signature(one.step()[0])[:3] == (1, 0, 1)


def test_a_thousand_steps():
    with serving(ScriptedGame()) as server, begun(server.port, seed=1) as client:
        for step in range(1, 1001):
            assert read_signature(client.step("forward 1", "camera 0 1")[0])[:3] == (1, 0, step)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (["<Whatever/>"], "there is no message '<Whatever/>'"),
        (["<MissionInit>", "u:0:0:1:true"], "the mission is no XML"),
        (["<MissionInit/>", "u:0:0:1:true"], "has no <Mission>"),
        (["<Peek/>"], "before its mission has begun"),
        (["<StepClient0></StepClient0 >"], "before its mission has begun"),
    ],
)
def test_what_is_not_understood_is_logged_and_the_connection_closed(messages, says, caplog):
    with serving(ScriptedGame()) as server, MalmoClient(server.port) as client:
        for message in messages:
            client.send(message)
        assert client.receive() is None
        with begun(server.port) as other:
            assert other.step()[2] == 0
    assert says in caplog.text
    assert "its connection is closed" in caplog.text


@pytest.mark.parametrize("commands", [["camera 1"], ["camera up down"], ["voxels 1,2"], ["voxels inf,1,2,3,4,5"],
     ["camera nan 0"], ["forward on"]])  # fmt: skip
def test_a_malformed_command_is_logged_and_the_connection_closed(commands, caplog):
    with serving(ScriptedGame()) as server, begun(server.port) as client:
        client.send("<StepClient0>" + "\n".join(commands) + "</StepClient0 >")
        assert client.receive() is None
    assert "is malformed" in caplog.text


def test_a_step_without_an_end_is_logged_and_the_connection_closed(caplog):
    with serving(ScriptedGame()) as server, begun(server.port) as client:
        client.send("<StepClient")
        assert client.receive() is None
    assert "'<StepClient' is too short for a step" in caplog.text


@pytest.mark.parametrize("size", [(0, 64), (-36, 64), (36000, 64000)])
def test_a_frame_of_no_size_is_refused(size, caplog):
    with serving(ScriptedGame()) as server, MalmoClient(server.port, size) as client, pytest.raises(TypeError):
        client.begin()
    assert f"a frame of {size[1]} x {size[0]} pixels cannot be sent" in caplog.text


def test_several_agents_are_refused(caplog):
    with (
        serving(ScriptedGame()) as server,
        MalmoClient(server.port) as client,
        pytest.raises(TypeError),  # what MineRL's client makes of a closed connection
    ):
        client.begin(agents=2)
    assert "for 2 agents: one is served" in caplog.text


def test_strangers_are_shown_out(caplog):
    with serving(ScriptedGame()) as server:
        with MalmoClient(server.port, hello="hello") as client:
            assert client.receive() is None
        with socket.create_connection(("127.0.0.1", server.port), 10) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):  # what it sent may not all have been read
                assert browser.recv(1) == b""
        socket.create_connection(("127.0.0.1", server.port), 10).close()  # who only looks whether the port is open
        with begun(server.port) as client:
            assert client.step()[2] == 0
    assert "where <MalmoEnv...> was expected" in caplog.text
    assert "b'GET ' is no length" in caplog.text


# Faults.


def test_error_closes_the_connection_once():
    with serving(ScriptedGame(), fault=Fault("error", after=3)) as server:
        client = begun(server.port)
        assert [client.step()[2] for _ in range(3)] == [0, 0, 0]
        client.send("<StepClient0>forward 1</StepClient0 >")
        assert [client.receive(), client.receive()] == [None, None]  # MineRL: info["error"], an invented observation
        client.socket.close()
        with begun(server.port) as client:
            assert read_signature([client.step() for _ in range(10)][-1][0])[1:3] == (1, 10)


def test_garbage_is_a_frame_of_a_wrong_length():
    with serving(ScriptedGame(), fault=Fault("garbage", after=1)) as server, begun(server.port) as client:
        client.step()
        with pytest.raises(ValueError, match="cannot reshape"):
            client.step()


def test_slow_start_delays_missions():
    with serving(ScriptedGame(), fault=Fault("slow_start", seconds=0.5)) as server:
        began = time.monotonic()
        with begun(server.port) as client:
            assert time.monotonic() - began >= 0.5
            assert client.step()[2] == 0


def test_stall_answers_nobody_any_more():
    with serving(ScriptedGame(), fault=Fault("stall", after=1)) as server, begun(server.port) as client:
        client.step()
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.step()
        with MalmoClient(server.port, timeout_s=0.3) as other, pytest.raises(TimeoutError):
            other.quit()


def test_dying_in_the_middle_of_a_frame():
    with program("--fault=die_mid_frame", "--fault_after=2") as (process, port), begun(port) as client:
        client.step()
        client.step()
        client.send("<StepClient0>forward 1</StepClient0 >")
        length = struct.unpack("!I", client.socket.recv(4, socket.MSG_WAITALL))[0]
        frame = client.socket.recv(length, socket.MSG_WAITALL)
        assert 0 < len(frame) < length
        assert process.wait(10) == -signal.SIGKILL


# The program.


def leaves_nothing(process):
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("state", ["idle", "playing", "stalled"])
def test_sigterm_ends_the_program_and_leaves_nothing(state):
    with program("--fault=stall", f"--fault_after={0 if state == 'stalled' else 1000}") as (process, port):
        client = None if state == "idle" else begun(port)
        if state != "idle":
            client.send("<StepClient0></StepClient0 >")
        if state == "playing":
            assert client.receive()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        leaves_nothing(process)
        with pytest.raises(ConnectionRefusedError):
            MalmoClient(port)
        if client is not None:
            client.socket.close()


def test_the_program_serves_the_embedded_world():
    arguments = ("--task=collect_dirt", "--height=36", "--width=64")
    with program(*arguments, module="minestudio_jax.serve_voxel") as (process, port), MalmoClient(port) as client:
        client.size = None  # then the program's counts
        assert client.begin(seed=4) == 1
        client.send("<Peek/>")
        assert len(client.receive()) == 36 * 64 * 3
        assert json.loads(client.receive())["biome_name"] == "forest"
        assert client.receive() == b"\0"
        client.send("<Exit>NOW</Exit>")
        assert client.number() == 1
        assert process.wait(20) == 0
        leaves_nothing(process)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task=chop_tre"], "did you mean 'chop_tree'"),
        (["--preset=hard"], "there is no 'hard'"),
        (["--fault=sometimes"], "--fault"),
        (["--prot=1"], "prot"),
        (["now"], "unexpected argument 'now'"),
    ],
)
def test_wrong_arguments(arguments, says, capsys):
    assert serve_voxel.main(["serve_voxel", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("serve_voxel: error: ")
    assert says in error


def test_a_port_that_is_taken(capsys):
    with MalmoServer(ScriptedGame()) as server:
        assert serve_voxel.main(["serve_voxel", f"--port={server.port}"]) == 2
        assert f"--port={server.port}: cannot listen on 127.0.0.1" in capsys.readouterr().err


# The embedded world.


@pytest.fixture(scope="module")
def port(game):
    with serving(game) as server:
        yield server.port


def test_chopping_a_tree_counts(port):
    with begun(
        port, seed=1, start='<Inventory><InventoryObject slot="0" type="minecraft:diamond_axe"/></Inventory>'
    ) as c:
        _, info, _ = c.peek()
        assert json.loads(info["equipped_items"]["mainhand"]) == {"type": "diamond_axe", "maxDamage": 1561, "damage": 0}
        assert (info["xpos"] % 1, info["zpos"] % 1) == (0.5, 0.5)
        c.step("chat /setblock ~ ~1 ~2 minecraft:oak_log", "voxels -1,1,0,1,1,2")
        _, _, _, info = c.step(f"camera {-info['pitch']} {-info['yaw']}", "voxels -1,1,0,2,1,2")
        assert {"x": 0, "y": 1, "z": 2, "type": "oak_log"} in info["voxels"]
        rewards = []
        for _ in range(12):
            image, reward, done, info = c.step("attack 1")
            rewards.append(reward)
        assert info["mine_block"] == {"oak_log": 1}
        assert json.loads(info["equipped_items"]["mainhand"])["damage"] == 1
        assert sum(rewards) == 1
        assert done == 0
        assert image.std() > 10
        assert set(info["life_stats"]) == {"life", "score", "food", "saturation", "xp", "is_alive", "air", "name"}
        assert (info["life_stats"]["is_alive"], info["is_raining"], info["can_see_sky"]) == (True, False, True)
        assert [slot["slot_id"] for slot in info["inventory"]] == list(range(36))


def test_the_same_seed_is_the_same_world(port):
    def played(seed):
        with begun(port, seed=seed) as client:
            return client.step("forward 1", "camera 3 20")

    one, same, other = played(2**40 + 5), played(2**40 + 5), played(6)
    np.testing.assert_array_equal(one[0], same[0])
    assert one[3] == same[3]
    assert (one[0] != other[0]).any()


def test_commands_in_the_chat(port, caplog):
    with begun(port, seed=1) as client:
        client.step("chat /give @p minecraft:dirt 3")
        _, _, _, info = client.step("chat /give @p minecraft:bow", "forward 1")
        assert [(s["type"], s["quantity"]) for s in info["inventory"][:2]] == [("dirt", 3), ("air", 0)]
        assert "no item 'bow'" in caplog.text
        _, _, _, info = client.step("chat /tp @s ~ ~ ~ 90 45")
        assert (info["yaw"], info["pitch"]) == (90, 45)
        assert client.step("chat hello")[2] == 0


def test_summoned_animals_can_be_killed(port):
    with begun(port, seed=1) as client:
        client.step("chat /replaceitem entity @s weapon.mainhand iron_axe", "chat /clear")
        client.step("chat /give @s iron_axe")
        client.step("chat /tp @s ~ ~ ~ 0 20")
        client.step("chat /execute as @p at @p run summon minecraft:sheep ~ ~ ~1.5 {Age:0}")
        info = {}
        for step in range(60):
            info = client.step(f"attack {int(step % 25 == 0)}")[3]
            if "kill_entity" in info:
                break
        assert info["kill_entity"] == {"sheep": 1}


def test_death_ends_the_mission_and_a_kill_without_done_on_death_does_not(port):
    with begun(port, seed=1) as client:
        client.step("chat /give @s dirt 5")
        _, _, done, info = client.step("chat /kill")
        assert (done, info["custom"]["deaths"], info["life_stats"]["life"]) == (0, 1, 20)
        assert info["inventory"][0]["type"] == "air"
        assert client.step("chat /tp ~ 17.1 ~")[2] == 0
        for _ in range(60):
            done, info = client.step()[2:]
            if done:
                break
        assert info["life_stats"]["life"] < 20 or done
        client.begin(seed=1, start="<DoneOnDeath>true</DoneOnDeath>")
        _, _, done, info = client.step("chat /kill")
        assert (done, info["life_stats"]["is_alive"]) == (1, False)


def test_biomes(port, caplog):
    with begun(port, seed=1, start="<PreferredSpawnBiome>desert</PreferredSpawnBiome>") as client:
        assert client.peek()[1]["biome_name"] == "desert"
        with pytest.raises(TypeError):
            client.begin(start="<PreferredSpawnBiome>ocean</PreferredSpawnBiome>")
    assert "no biome 'ocean'; it has plains" in caplog.text


def test_a_stack_of_a_mission_is_no_larger_than_a_slot_holds(port):
    stacks = "".join(
        f'<InventoryObject slot="{slot}" type="dirt" quantity="{count}"/>' for slot, count in enumerate((-1, 0, 3, 99))
    )
    with begun(port, seed=1, start=f"<Inventory>{stacks}</Inventory>") as client:
        told = [(stack["type"], stack["quantity"]) for stack in client.peek()[1]["inventory"][:4]]
    assert told == [("air", 0), ("air", 0), ("dirt", 3), ("dirt", 64)]


def test_crafting_as_in_mine_rl_0_4(port):
    with begun(port, seed=1) as client:
        client.step("chat /give @s oak_log 2")
        info = client.step("craft oak_planks", "nearbyCraft none", "place none")[3]
        assert info["craft_item"] == {"oak_planks": 4}


def test_nothing_is_compiled_twice(game, port):
    with begun(port, seed=1) as client:
        client.step("chat /summon pig")
        client.step("chat /kill")
        client.step("chat /fill ~1 ~ ~1 ~2 ~ ~2 stone")
        client.step("chat /teleportbiome @a forest")
    own = game._compiled["forest", (36, 64)]
    assert {function._cache_size() for function in own[1:]} == {1}
    assert isinstance(game._state.player.position, jax.Array)
