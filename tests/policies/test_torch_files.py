"""PyTorch's containers without PyTorch: equal tensors, and nothing run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from minestudio_jax.policies.torch_files import UnsafeFileError, read_plain_pickle, read_torch_file, write_torch_file
from tests.policies.vpt_golden import rebuilt


class Malicious:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped(folder, program: bytes):
    path = folder / "evil.weights"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return path


def streamed(folder, program: bytes):
    path = folder / "evil.legacy.weights"
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + program)
    return path


def bare(folder, program: bytes):
    path = folder / "evil.model"
    path.write_bytes(program)
    return path


@pytest.mark.parametrize(
    ("container", "read"), [(zipped, read_torch_file), (streamed, read_torch_file), (bare, read_plain_pickle)]
)
def test_a_malicious_file_is_refused_by_name_and_does_nothing(tmp_path, container, read):
    victim = tmp_path / "created-by-the-pickle"
    program = pickle.dumps({"weights": Malicious(victim)}, 2)
    path = container(tmp_path, program)
    with pytest.raises(UnsafeFileError, match=rf"{path.name} refers to \w+\.mkdir"):
        read(path)
    assert not victim.exists()
    pickle.loads(program)  # it would have
    assert victim.exists()


@pytest.mark.parametrize(
    "code", [b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"cos\nsystem\n", b"cminestudio_jax.train\nmain\n"]
)
def test_no_callable_of_python_or_ours_can_be_reached(tmp_path, code):
    with pytest.raises(UnsafeFileError):
        read_torch_file(zipped(tmp_path, b"\x80\x02" + code + b"."))


def test_what_frameworks_keep_beside_the_weights_is_read_as_nothing(tmp_path):
    """Even a function of a known package is not called: its place is taken by an object without content."""
    call = b"\x80\x02}X\x05\x00\x00\x00extracpathlib\nPath\nX\x01\x00\x00\x00x\x85Rs."
    saved = read_torch_file(zipped(tmp_path, call))
    assert set(saved) == {"extra"}
    assert not hasattr(saved["extra"], "exists")


def test_golden_containers_hold_the_same_tensors(golden, tmp_path):
    """vpt_tiny.weights, vpt_tiny.legacy.weights and vpt_tiny.lightning.ckpt."""
    modern = read_torch_file(golden / "vpt_tiny.weights")
    legacy = read_torch_file(rebuilt(golden, "vpt_tiny.legacy.weights", tmp_path))
    lightning = read_torch_file(rebuilt(golden, "vpt_tiny.lightning.ckpt", tmp_path))
    assert lightning["epoch"] == 3
    assert {f"mine_policy.{name}" for name in modern} == set(lightning["state_dict"])
    assert set(modern) == set(legacy)
    assert len(modern) == 102
    for name, tensor in modern.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, legacy[name])
        np.testing.assert_array_equal(tensor, lightning["state_dict"][f"mine_policy.{name}"])


def test_what_is_written_is_read_again_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.normal(size=(3, 4, 2)).astype(np.float32),
        "scalar": np.float32(np.nextafter(np.float32(1), np.float32(2))),
        "special": np.array([np.nan, -np.inf, -0.0, 1e-45], np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "turned": rng.normal(size=(5, 3)).astype(np.float32).T,
    }
    write_torch_file(tmp_path / "x.weights", tensors)
    again = read_torch_file(tmp_path / "x.weights")
    assert list(again) == list(tensors)
    for name, tensor in tensors.items():
        assert again[name].shape == tensor.shape
        assert again[name].tobytes() == np.ascontiguousarray(tensor).tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["x.weights"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty", "stream cut"])
def test_damaged_files_are_told_by_name(golden, tmp_path, damage):
    path = tmp_path / "damaged.weights"
    content = bytearray((golden / "vpt_tiny.weights").read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    cut = rebuilt(golden, "vpt_tiny.legacy.weights", tmp_path).read_bytes()[:-100]
    path.write_bytes(
        {"cut": content[:-5000], "flipped": content, "text": b"not a file of weights", "empty": b"", "stream cut": cut}[
            damage
        ]
    )
    with pytest.raises(ValueError, match=r"damaged\.weights"):
        read_torch_file(path)


def test_tensors_that_reach_beyond_their_storage_are_refused(tmp_path):
    """A size that lies would read foreign memory."""
    write_torch_file(tmp_path / "x.weights", {"w": np.arange(6, dtype=np.float32)})
    source = zipfile.ZipFile(tmp_path / "x.weights")
    program = source.read("archive/data.pkl").replace(b"J\x06\x00\x00\x00t", b"J\x60\x00\x00\x00t")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", source.read("archive/data/0"))
    (tmp_path / "y.weights").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"y\.weights"):
        read_torch_file(tmp_path / "y.weights")
