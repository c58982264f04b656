"""Sinks that are slow, fail or hang: metrics.jsonl has everything, and nobody waits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from minestudio_jax.config import ConfigError
from minestudio_jax.utils import metric_log
from minestudio_jax.utils.metric_log import MetricLog
from minestudio_jax.utils.metrics import BackgroundJsonLines, read_records
from minestudio_jax.utils.sinks import TensorBoardSink, sink_factories
from tests.rollout.processes import wait_until


class Recorder:
    """A sink that does with a record what it is told, and remembers it."""

    def __init__(self, do=lambda record: None):
        self.records, self.closed, self._do = [], threading.Event(), do

    def __call__(self, run_dir, config):
        self.given = (run_dir, config)
        return self

    def write(self, record):
        self._do(record)
        self.records.append(record)

    def close(self):
        self.closed.set()


def numbers(records):
    return [record["iteration"] for record in records]


def write_all(log, count):
    for i in range(1, count + 1):
        log.write({"iteration": i, "loss": float("nan")})


def test_a_sink_gets_every_record_with_its_step_and_is_closed(tmp_path):
    """D-57."""
    sink = Recorder()
    log = MetricLog(tmp_path / "metrics.jsonl", {"mine": sink}, tmp_path, {"a": 1})
    write_all(log, 20)
    log.close()
    assert sink.given == (tmp_path, {"a": 1})
    assert (
        sink.records
        == read_records(tmp_path / "metrics.jsonl")
        == [{"iteration": i, "loss": None} for i in range(1, 21)]
    )
    assert sink.closed.is_set()
    assert log.dropped_records == 0


def test_a_sink_that_sleeps_five_seconds_a_call_costs_the_caller_nothing(tmp_path, monkeypatch, caplog):
    """D-46: what it does not get is counted, and the end does not wait for it either."""
    monkeypatch.setattr(metric_log, "CLOSE_DEADLINE_S", 0.5)
    sink, quick = Recorder(lambda record: time.sleep(5.0)), Recorder()
    log = MetricLog(tmp_path / "metrics.jsonl", {"mine": sink, "quick": quick}, tmp_path, {})
    began = time.monotonic()
    for i in range(1, 601):
        log.write({"iteration": i})
        if i % 100 == 0:  # the others are not behind
            assert wait_until(lambda i=i: quick.records and quick.records[-1]["iteration"] == i, 5.0)
    assert 600 - metric_log.QUEUED_RECORDS - 2 <= log.dropped_records <= 600 - metric_log.QUEUED_RECORDS
    log.close()
    assert time.monotonic() - began < 4.0
    assert numbers(read_records(tmp_path / "metrics.jsonl")) == list(range(1, 601))
    assert len(quick.records) == 600
    assert "'mine' did not finish within" in caplog.text


def test_a_failure_is_told_once_and_the_next_record_is_tried(tmp_path, caplog):
    def fail(record):
        if 3 <= record["iteration"] <= 5:
            raise OSError("the server is away")

    sink = Recorder(fail)
    log = MetricLog(tmp_path / "metrics.jsonl", {"mine": sink}, tmp_path, {})
    write_all(log, 8)
    log.close()
    assert numbers(sink.records) == [1, 2, 6, 7, 8]
    assert log.dropped_records == 3
    assert caplog.text.count("the server is away") == 1
    assert "'mine' failed and is tried again" in caplog.text


def test_a_sink_that_never_works_is_given_up(tmp_path, caplog):
    def fail(*_):
        raise ValueError("no such project")

    log = MetricLog(tmp_path / "metrics.jsonl", {"writes": Recorder(fail), "opens": fail}, tmp_path, {})
    write_all(log, 300)
    assert wait_until(lambda: log.dropped_records == 600, 10.0)
    log.close()
    assert "'writes' failed 10 times in a row and is given up" in caplog.text
    assert "'opens' cannot be opened and is given up" in caplog.text
    assert caplog.text.count("no such project") == 3  # the first of a row, the last of it, and the opening
    assert len(read_records(tmp_path / "metrics.jsonl")) == 300


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_refused_with_the_command(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf"pip install 'minestudio_jax\[{name}\]'"):
        sink_factories((name,))
    assert sink_factories(("jsonl",)) == {}
    with pytest.raises(ConfigError, match=r"logger.sinks='json:nothing'.*has no function 'nothing'"):
        sink_factories(("json:nothing",))


# tensorboardX's protocol buffers warn of their own age.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_an_event_file_of_the_finite_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = TensorBoardSink(tmp_path, {})
    for i in (1, 2):
        sink.write({"iteration": i, "loss/total": 0.5, "episode/return_mean": None})
    sink.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert content.count(b"loss/total") == 2
    assert b"return_mean" not in content


WANDB = """
class Run:
    def __init__(self, **settings): self.settings, self.records, self.metrics = settings, [], []
    def define_metric(self, name, step_metric=None): self.metrics.append((name, step_metric))
    def log(self, record): self.records.append(record)
    def finish(self): self.records.append("finished")
runs = []
def init(**settings):
    runs.append(Run(**settings))
    return runs[-1]
"""


def test_wandb_gets_numbers_by_their_iteration_and_continues_its_run(tmp_path):
    """With a module of that name which writes down how it is called: the real one is large."""
    (tmp_path / "wandb.py").write_text(WANDB)
    (tmp_path / "run").mkdir()
    code = (
        "import sys, pathlib, wandb\n"
        "from minestudio_jax.utils.sinks import WandbSink\n"
        "for i in (1, 2):\n"
        "    sink = WandbSink(pathlib.Path(sys.argv[1]), {'trainer': {}})\n"
        "    sink.write({'iteration': i, 'loss': None})\n"
        "    sink.close()\n"
        "first, second = wandb.runs\n"
        "assert first.settings == second.settings, 'the same id'\n"
        "assert first.settings['resume'] == 'allow' and first.settings['config'] == {'trainer': {}}\n"
        "assert ('*', 'iteration') in first.metrics\n"
        "assert first.records == [{'iteration': 1.0}, 'finished'], first.records\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True, env=env, timeout=60)


LIMITED = """
import pathlib, resource, signal, sys, time
from minestudio_jax.utils.metrics import BackgroundJsonLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
soft = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
BackgroundJsonLines._RETRY_S = 0.05
log = BackgroundJsonLines(pathlib.Path(sys.argv[1]))
soft(1000)
for i in range(1, 101):
    log.write({"iteration": i, "text": "x" * 50})
time.sleep(0.5)
size = pathlib.Path(sys.argv[1]).stat().st_size
assert 900 < size <= 1000, size
soft(resource.RLIM_INFINITY)
log.close()
"""


def test_records_wait_while_there_is_no_room_and_are_written_whole(tmp_path):
    """A limit on the size of files stands for the full disk."""
    path = tmp_path / "metrics.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert numbers(read_records(path)) == list(range(1, 101))
    assert path.read_text().count("\n") == 100
    assert done.stderr.count("make room") == 1


def test_what_cannot_be_written_by_the_deadline_is_told(tmp_path, caplog, monkeypatch):
    log = BackgroundJsonLines(tmp_path / "metrics.jsonl")

    def full(line):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log, "_append", full)
    with caplog.at_level(logging.WARNING):
        log.write({"iteration": 1})
        log.close(0.2)
    assert "No space left on device" in caplog.text
    assert "1 records could not be written" in caplog.text
    log._thread.join(10)
    assert log._file.closed
