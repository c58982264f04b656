"""A tiny process beside this one that says a last sentence if this one ends without a word.

Run as a program, this file starts that process: it reads its standard input to the end, and says what came last.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

_START_DEADLINE_S = 30.0  # a file of the standard library alone, which forks


class Witness:
    """Waits for the end of this process, until it is closed.

    Args:
      sentence: what is said on stderr then.
      log: path of a log that it is added to.
    Raises:
      OSError, subprocess.TimeoutExpired: no process can be started.
    """

    def __init__(self, sentence: str, log: str) -> None:
        # A session of its own, so that what stops this program from a terminal does not stop the witness first. And it
        # is no child of this process, all of which are ended where Ray is stopped.
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), log],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert starter.stdin is not None
        self._pipe = starter.stdin
        self.expect(sentence)
        starter.wait(_START_DEADLINE_S)

    def expect(self, sentence: str) -> None:
        """Another sentence takes the place of the last one."""
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the witness: nothing will be said
            self._pipe.write(json.dumps(sentence) + "\n")
            self._pipe.flush()

    def close(self) -> None:
        """Nothing is to be said any more."""
        self.expect("")
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()


def main() -> None:
    if os.fork():
        os._exit(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pid, log = sys.argv[1:]
    sentence = ""
    for line in sys.stdin:
        if line.endswith("\n"):  # whoever is killed may leave half a line
            sentence = json.loads(line)
    if sentence:
        sentence = f"process {pid} ended without a word: {sentence}"
        sys.stderr.write(f"train: {sentence}\n")
        sys.stderr.flush()
        with contextlib.suppress(OSError), open(log, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR witness: {sentence}\n")


if __name__ == "__main__":
    main()
