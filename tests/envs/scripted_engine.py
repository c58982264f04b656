"""A stand-in for Minecraft: a program that says it listens, serves Malmo's protocol, and misbehaves as told.

Row r of the frame after step s of episode e, in the seed's world, is (e, s, r + seed) modulo 256 throughout, so that a
test can tell which step a pixel comes from and which way up it is. Logs mined count steps in which attack is held, since
the world began.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from minestudio_jax.envs.voxel.malmo_server import FAULTS, Fault, Tick
from minestudio_jax.serve_voxel import run


def frame(episode, step, seed, height, width):
    image = np.empty((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = episode % 256, step % 256
    image[..., 2] = ((np.arange(height) + seed) % 256)[:, None]
    return image


class ScriptedGame:
    def __init__(self, args):
        self._args, self._episode = args, -1
        self._diary = open(args.diary, "a") if args.diary else None  # noqa: SIM115

    def write(self, *words):
        if self._diary:
            print(*words, file=self._diary, flush=True)

    def reset(self, seed, mission):
        self._episode += 1
        self._step, self._logs, self._seed, self._mission = 0, 0, seed, mission
        self._chat = []
        stacks = ",".join(f"{s.slot}:{s.item}:{s.count}" for s in mission.inventory)
        self.write("mission", seed, mission.biome or "-", stacks or "-", mission.done_on_death)
        return self._tick(False)

    def step(self, keys):
        self._step += 1
        self._logs += keys["attack"]
        if keys.get("chat"):
            self.write("chat", keys["chat"])
        if self._args.chatter:
            print("\n".join(["chatter " * 100] * self._args.chatter), flush=True)
        if self._args.exit_at and self._step == self._args.exit_at and strikes(self._args):
            os._exit(3)
        ended = self._args.episode and self._step >= self._args.episode
        tick = self._tick(bool(ended))
        if keys.get("voxels"):
            tick.info["voxels"] = [{"x": 0, "y": -1, "z": 0, "type": "minecraft:dirt"}]
        return tick

    def _tick(self, ended):
        height, width = self._mission.size
        dead = ended and self._args.end == "death"
        info = {
            "mine_block": {"oak_log": self._logs} if self._logs else {},
            "custom": {"minecraft:jump": 2, "deaths": int(dead)},
            "life_stats": {"life": 0.0 if dead else 19.5, "food": 18, "is_alive": not dead},
            "health": 0.0 if dead else 19.5, "food_level": 18,
            "xpos": 1.5, "ypos": 64.0, "zpos": -2.0, "yaw": 90.0, "pitch": -5.0,
            "biome_name": "minecraft:plains", "isGuiOpen": False,
            "inventory": [{"slot_id": s.slot, "type": s.item, "quantity": s.count} for s in self._mission.inventory]
            + [{"slot_id": 35, "type": "none", "quantity": 0}],
            "equipped_items": {"mainhand": '{"type":"minecraft:iron_axe","maxDamage":250,"damage":3}'},
        }  # fmt: skip
        return Tick(frame(self._episode, self._step, self._seed, height, width), 0.0, ended, info)


def strikes(args):
    """Whether the fault is to strike in this life: only in the first one with --fault_once=<path>."""
    if not args.fault_once:
        return True
    try:
        Path(args.fault_once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--episode", type=int, default=0, help="steps; 0: without end")
    parser.add_argument("--end", choices=["death", "mission"], default="death")
    parser.add_argument("--exit_at", type=int, default=0, help="step at which the process ends")
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--fault_after", type=int, default=0)
    parser.add_argument("--fault_s", type=float, default=0.0)
    parser.add_argument("--fault_once", default="")
    parser.add_argument("--start", choices=["well", "exit", "hang", "old_java"], default="well")
    parser.add_argument("--start_s", type=float, default=0.0)
    parser.add_argument("--child", action="store_true", help="start a process in a session of its own")
    parser.add_argument("--chatter", type=int, default=0, help="lines of 800 bytes printed a step")
    parser.add_argument("--diary", default="")
    args = parser.parse_args()
    game = ScriptedGame(args)
    child = 0
    if args.child:
        sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        child = subprocess.Popen(sleep, start_new_session=True).pid
    game.write("start", args.port, os.getpid(), child, os.getcwd())
    print("a line before", flush=True)
    time.sleep(args.start_s)
    if args.start == "hang":
        time.sleep(600)
    if args.start == "old_java":
        print("java.lang.UnsupportedClassVersionError: net/minecraft/client/main/Main", flush=True)
    if args.start != "well":
        sys.exit(1)
    has_fault = (args.fault not in ("none", "slow_start") and strikes(args)) or args.fault == "slow_start"
    fault = Fault(args.fault if has_fault else "none", args.fault_after, args.fault_s)
    sys.exit(run(game, args.port, "127.0.0.1", (36, 64), fault))


if __name__ == "__main__":
    main()
