"""A client of Malmo's protocol that sends and reads every byte itself, as MineRL 1.0 does."""

from __future__ import annotations

import json
import socket
import struct

import numpy as np

OBSERVATIONS = "<ObservationFromFullStats/><ObservationFromFullInventory/><ObservationFromEquippedItem/>"
MISSION = """<MissionInit xmlns="http://ProjectMalmo.microsoft.com" SchemaVersion="" PlatformVersion="0.37.0">
<Mission><About><Summary>test</Summary></About>
<ServerSection><ServerInitialConditions/><ServerHandlers>{server}</ServerHandlers></ServerSection>
<AgentSection mode="Survival"><Name>MineRLAgent0</Name><AgentStart>{start}</AgentStart><AgentHandlers>
{video}{observations}<HumanLevelCommands/><CameraCommands/>
</AgentHandlers></AgentSection></Mission><ExperimentUID>u</ExperimentUID><ClientRole>0</ClientRole></MissionInit>"""


class MalmoClient:
    """One connection; `size` is that of the frames, height and width."""

    def __init__(self, port, size=(36, 64), hello="<MalmoEnv0.37.0/>", timeout_s=60.0):
        self.size = size
        self.socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(hello)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.socket.close()

    def send(self, text):
        data = text.encode()
        self.socket.sendall(struct.pack("!I", len(data)) + data)

    def receive(self):
        """The next message; None if the connection has ended, even in the middle of it: so does MineRL."""
        header = self._exactly(4)
        return None if header is None else self._exactly(struct.unpack("!I", header)[0])

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def number(self):
        return struct.unpack("!I", self.receive())[0]

    def quit(self):
        self.send("<Quit/>")
        return self.number()

    def begin(self, seed=None, start="", server="", observations=OBSERVATIONS, agents=1):
        """Sends a mission; 1 if it has begun."""
        video = "" if self.size is None else "<VideoProducer><Width>%d </Width><Height>%d</Height></VideoProducer>"
        video = video and video % (self.size[1], self.size[0])
        self.send(MISSION.format(start=start, server=server, observations=observations, video=video))
        self.send(f"u:0:0:{agents}:true" + ("" if seed is None else f":{seed}"))
        return self.number()

    def image(self, frame):
        height, width = self.size or (360, 640)
        return np.frombuffer(frame, np.uint8).reshape(height, width, 3)[::-1]

    def peek(self):
        """image, info, done."""
        self.send("<Peek/>")
        frame, info, done = self.receive(), self.receive(), self.receive()
        return self.image(frame), json.loads(info), struct.unpack("!b", done)[0]

    def step(self, *commands):
        """image, reward, done, info."""
        self.send("<StepClient0>" + "\n".join(commands) + "</StepClient0 >")
        frame = self.receive()
        reward, done, sent = struct.unpack("!dbb", self.receive())
        info = json.loads(self.receive())
        self.send("<StepServer></StepServer>")
        assert sent == 1
        return self.image(frame), reward, done, info
