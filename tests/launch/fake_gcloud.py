"""Google Cloud's command line as far as keep_running.sh goes by it, with one queued resource and a trainer of set fate.

FAKE_GCLOUD names a folder. In it: `fates`, a line for every start of the trainer, of what one look after the other
finds, the first of all a trainer that runs: running, unreachable, finished, failed, absent (a host was shut down and is
back), preempted, or the exit code of one host; `looks`, those that are still to come; `state`, that of the queued resource; `calls`, what was asked for, a line each;
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
    elif done == "log":
        print(f"what the log says, {remote.rsplit(maxsplit=1)[1]}")
    elif done == "learner":
        fate, *others = fates.read_text().splitlines()
        fates.write_text("\n".join(others))
        looks.write_text(f"running {fate}")
    elif done == "status":
        return status(state, looks)
    return 0


def status(state: Path, looks: Path) -> int:
    """What one look finds; a trainer that never ran, or whose fate was met, is absent."""
    found, *others = looks.read_text().split() if looks.exists() else ["absent"]
    if others:
        looks.write_text(" ".join(others))
    else:
        looks.unlink(missing_ok=True)
    if found == "preempted":
        state.write_text("SUSPENDED")
    if found in ("preempted", "unreachable"):
        return 255
    first, second = {
        "running": ("running", "running"),
        "finished": ("done", "done"),
        "failed": ("done", "failed, exit code 1"),
        "absent": ("done", "absent"),
    }.get(found, (f"failed, exit code {found}", "running"))
    print(f"host0: trainer {first}\nhost1: trainer {second}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
