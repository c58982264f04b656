"""A place for metrics that takes five seconds for each record."""

from __future__ import annotations

import time


class SlowSink:
    def write(self, record):
        time.sleep(5)

    def close(self):
        pass


def make(run_dir, config):
    return SlowSink()
