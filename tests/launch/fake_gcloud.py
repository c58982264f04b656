"""Google Cloud's command line as far as keep_running.sh goes by it, with one queued resource and a trainer of set fate.

FAKE_GCLOUD names a folder. In it: `fates`, a line for every start of the trainer: finished, failed, absent (a host was
shut down and is back) or preempted; `state`, that of the queued resource; `calls`, what was asked for, a line each;
`sent.tar.gz`, what was last sent to the hosts.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    folder = Path(os.environ["FAKE_GCLOUD"])
    state, fates, looks = folder / "state", folder / "fates", folder / "looks"
    verb = arguments[3]
    remote = next((a.removeprefix("--command=") for a in arguments if a.startswith("--command=")), "")
    done = remote.rsplit("host.sh ", 1)[1].split()[0] if "host.sh" in remote else verb
    with (folder / "calls").open("a") as calls:
        calls.write(f"{done}\n")
    if verb == "list":
        print(state.read_text() if state.exists() else "")
    elif verb == "describe":
        print("10.0.0.9")
    elif verb == "create":
        state.write_text("ACTIVE")
    elif verb == "delete":
        state.unlink()
    elif state.read_text() != "ACTIVE":
        return 255
    elif verb == "scp":
        shutil.copy(arguments[4], folder / "sent.tar.gz")
    elif done == "learner":
        looks.write_text("")
    elif done == "status":
        return status(state, fates, looks)
    return 0


def status(state: Path, fates: Path, looks: Path) -> int:
    """At the first look the trainer runs on both hosts, at the second it has met its fate."""
    if not looks.exists():
        print("host0: trainer absent\nhost1: trainer absent")
        return 0
    if not looks.read_text():
        looks.write_text("once")
        print("host0: trainer running\nhost1: trainer running")
        return 0
    looks.unlink()
    fate, *others = fates.read_text().splitlines()
    fates.write_text("\n".join(others))
    if fate == "preempted":
        state.write_text("SUSPENDED")
        return 255
    word = {"finished": "done", "failed": "failed, exit code 1", "absent": "absent"}[fate]
    print(f"host0: trainer done\nhost1: trainer {word}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
