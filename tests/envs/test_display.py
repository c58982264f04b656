"""Displays that are found, chosen and started; X servers and OpenGL's programs are stand-ins on a PATH of the test's."""

from __future__ import annotations

import os
import re
import socket
import sys

import pytest

from minestudio_jax.envs.display import Display, choose_display, find_displays, gl_renderer, open_display
from minestudio_jax.envs.env import EnvironmentFailure, MisconfiguredEnvironment
from tests.rollout.processes import is_alive, wait_until

XVFB = """
import os, sys, time
print("Xvfb speaks", flush=True)
if "{mode}" == "dies": sys.exit(1)
open("{folder}/pid", "w").write(str(os.getpid()))
os.write(int(sys.argv[sys.argv.index("-displayfd") + 1]), b"4711\\n")
time.sleep(600)
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts a program of this name, in Python, on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("DISPLAY", "MINERL_HEADLESS", "MINESTUDIO_GPU_RENDER"):
        monkeypatch.delenv(name, raising=False)

    def install(name, code="", **values):
        for key, value in {"folder": tmp_path, **values}.items():
            code = code.replace("{" + key + "}", str(value))
        (folder / name).write_text(f"#!{sys.executable} -S\n{code}")
        (folder / name).chmod(0o755)

    return install


@pytest.fixture
def x_server():
    """Something that listens where X server 39017 would."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0/tmp/.X11-unix/X39017")
        listener.listen()
        yield ":39017.0"


def test_where_nothing_is_there_is_said_what_to_install(programs):
    assert [finding.usable for finding in find_displays()] == [False] * 3
    with pytest.raises(MisconfiguredEnvironment, match=r"needs an X display.*DISPLAY.*not set.*apt-get install xvfb"):
        choose_display("auto")


def test_a_display_must_answer(programs, x_server, monkeypatch):
    programs("Xvfb")
    monkeypatch.setenv("DISPLAY", ":39018")
    assert choose_display() == "xvfb"
    with pytest.raises(MisconfiguredEnvironment, match="no X server answers at :39018"):
        choose_display("inherit")
    monkeypatch.setenv("DISPLAY", x_server)
    assert choose_display() == "inherit"
    assert open_display().variables == {}
    monkeypatch.setenv("DISPLAY", "nonsense")
    with pytest.raises(MisconfiguredEnvironment, match="'nonsense' is not of the form"):
        choose_display("inherit")


def test_what_environment_variables_ask_for_wins(programs, x_server, monkeypatch):
    monkeypatch.setenv("DISPLAY", x_server)
    monkeypatch.setenv("MINERL_HEADLESS", "1")
    with pytest.raises(MisconfiguredEnvironment, match=r"MINERL_HEADLESS .*apt-get install xvfb"):
        choose_display()
    programs("Xvfb")
    assert choose_display() == "xvfb"
    monkeypatch.setenv("MINESTUDIO_GPU_RENDER", "1")
    with pytest.raises(MisconfiguredEnvironment, match=r"MINESTUDIO_GPU_RENDER=1.*vglrun is not installed"):
        choose_display()
    programs("vglrun")
    assert choose_display() == "virtualgl"


def test_a_launch_command_may_have_a_display_of_its_own(programs):
    assert open_display("minerl_headless").variables == {"MINERL_HEADLESS": "1"}


def test_each_instance_has_an_x_server_of_its_own_and_ends_it(programs, tmp_path):
    programs("Xvfb", XVFB, mode="lives")
    display = open_display("xvfb")
    assert display.variables == {"DISPLAY": ":4711"}
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    assert os.getpgid(pid) == os.getpgrp()
    display.close()
    display.close()
    assert wait_until(lambda: not is_alive(pid))


def test_virtualgl_draws_on_the_gpu_for_an_x_server_of_its_own(programs, tmp_path):
    programs("Xvfb", XVFB, mode="lives")
    programs("vglrun")
    display = open_display("virtualgl", "/dev/dri/card1")
    assert (display.prefix, display.variables) == (("vglrun", "-d", "/dev/dri/card1"), {"DISPLAY": ":4711"})
    display.close()


def test_an_x_server_that_does_not_start_is_a_failure(programs):
    programs("Xvfb", XVFB, mode="dies")
    with pytest.raises(EnvironmentFailure, match="Xvfb ended with status 1"):
        open_display("xvfb")


@pytest.mark.parametrize(
    ("told", "name", "software", "sentence"),
    [
        ("OpenGL renderer string: llvmpipe (LLVM 15.0.6, 256 bits)", "llvmpipe (LLVM 15.0.6, 256 bits)", True, "CPU"),
        ("x\nOpenGL renderer string: NVIDIA A100-SXM4/PCIe/SSE2\ny", "NVIDIA A100-SXM4/PCIe/SSE2", False, "draws"),
        ("Error: couldn't find RGB GLX visual or fbconfig", "", None, "no OpenGL on this display.*fbconfig"),
    ],
)
def test_who_draws_is_told(programs, told, name, software, sentence):
    programs("glxinfo", f"print({told!r})")
    renderer = gl_renderer(Display("inherit", {"DISPLAY": ":0"}))
    assert (renderer.name, renderer.software) == (name, software)

    assert re.search(sentence, renderer.sentence)


def test_without_glxinfo_nobody_knows_who_draws(programs):
    assert "mesa-utils" in gl_renderer(Display("inherit", {})).sentence
