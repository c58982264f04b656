"""Takes the trainer's place where only its launcher is tried: says in a folder that it is there, and waits for SIGTERM.

--folder=F          where it writes <index>.ready with its flags and variables, and <index>.stopped once it was told to stop
--stop_codes=0,3    exit codes, by index, after SIGTERM
--fail=1:5          the host of index 1 exits with code 5 as soon as all of them are ready
--deaf=1            the host of index 1 does not hear SIGTERM
--leave_child       leaves a process behind that does not hear SIGTERM either
--ray               joins the cluster, and notes its resources
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    flags = dict(arg.removeprefix("--").partition("=")[::2] for arg in sys.argv[1:])
    index, hosts, folder = int(flags["trainer.host_index"]), int(flags["trainer.num_hosts"]), Path(flags["folder"])
    told: list[int] = []
    resources: dict[str, float] = {}
    if "ray" in flags:
        import ray

        ray.init(address=flags["run.ray_address"], log_to_driver=False)
        resources = ray.cluster_resources()
    if flags.get("deaf") == str(index):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    if "leave_child" in flags:
        ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-S", "-c", ignore])
    said = {"flags": flags, "resources": resources, "variables": dict(os.environ)}
    (folder / f"{index}.new").write_text(json.dumps(said))
    (folder / f"{index}.new").rename(folder / f"{index}.ready")
    print(f"host {index} is ready", flush=True)
    print("and complains", file=sys.stderr, flush=True)
    failing, _, code = flags.get("fail", "").partition(":")
    while not told:
        if failing == str(index) and len(list(folder.glob("*.ready"))) == hosts:
            return int(code)
        time.sleep(0.02)
    (folder / f"{index}.stopped").touch()
    codes = [int(code) for code in flags.get("stop_codes", "").split(",") if code]
    return codes[index] if codes else 0


if __name__ == "__main__":
    sys.exit(main())
