"""Disks above images, against a model in memory: reads, writes, zeroes, layers, files."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal

import pytest

from vmm._native.disk.layer import CLUSTER_BYTES, Layer
from vmm._native.disk.overlay import DEPTH_LIMIT, Overlay, merge
from vmm.errors import BusyError, ConfigError, VmmError
from vmm.host.disk import Disk
from vmm.host.overlay import OverlayDisk

# Not a multiple of a cluster: the last one is cut off.
SIZE = 64 * CLUSTER_BYTES + 3 * 512


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def disk(image):
    disk = OverlayDisk.above(str(image))
    yield disk
    disk.close()


def whole(disk: OverlayDisk) -> bytes:
    return disk.overlay.read(0, SIZE)


def some_range(rng: random.Random) -> tuple[int, int]:
    """Sectors, now and then whole clusters, now and then the end of the disk."""
    unit = rng.choice([512, 512, CLUSTER_BYTES])
    length = unit * rng.randint(1, 12)
    if rng.random() < 0.1:
        return SIZE - 512 * rng.randint(1, 9), 0
    return min(rng.randrange(0, SIZE, unit), SIZE - 512), length


def change(rng: random.Random, disk: OverlayDisk, model: bytearray) -> None:
    offset, length = some_range(rng)
    length = min(length or SIZE, SIZE - offset)
    if rng.random() < 0.25:
        disk.overlay.clear(offset, length)
        model[offset : offset + length] = bytes(length)
    else:
        data = rng.randbytes(length)
        disk.overlay.write(offset, data)
        model[offset : offset + length] = data


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_against_a_model(image, tmp_path, seed):
    rng = random.Random(seed)
    path = str(tmp_path / "over") if seed % 2 else None
    original = image.read_bytes()
    model = bytearray(original)
    disk = OverlayDisk.above(str(image), path)
    kept: list[tuple[tuple[Layer, ...], bytes]] = []
    try:
        for _ in range(250):
            what = rng.random()
            if what < 0.7:
                change(rng, disk, model)
            elif what < 0.8:
                offset, length = some_range(rng)
                length = min(length or SIZE, SIZE - offset)
                assert disk.overlay.read(offset, length) == model[offset : offset + length]
            elif what < 0.9:
                kept.append((disk.overlay.freeze(), bytes(model)))
            elif what < 0.95 and kept:
                layers, then = rng.choice(kept)
                disk.overlay.restore(layers)
                model[:] = then
            elif what < 0.97 and kept:
                layers, then = rng.choice(kept)
                child = disk.fork(layers)
                assert whole(child) == then
                child.overlay.write(0, b"child" * 100)
                child.close()
            elif path:
                disk.close()
                disk = OverlayDisk.above(str(image), path)
                kept.clear()
            assert len(disk.overlay.layers) <= DEPTH_LIMIT
        assert whole(disk) == model
        for layers, then in kept:
            disk.overlay.restore(layers)
            assert whole(disk) == then
    finally:
        disk.close()
    assert image.read_bytes() == original


def test_nothing_written_freezes_and_restores_for_nothing(disk):
    assert disk.overlay.freeze() == ()
    disk.overlay.write(0, bytes(512))
    layers = disk.overlay.freeze()
    top = disk.overlay.top
    assert disk.overlay.freeze() == layers
    disk.overlay.restore(layers)
    assert disk.overlay.top is top


@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, 512), (SIZE - 512, 1024), (0, SIZE + 512), (1 << 63, 512), ((1 << 64) - 512, 1024)],
)
def test_outside_the_disk(disk, offset, length):
    for call in (
        lambda: disk.overlay.read(offset, length),
        lambda: disk.overlay.write(offset, bytes(length)),
        lambda: disk.overlay.clear(offset, length),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EINVAL
    assert disk.overlay.top.written == 0


def test_layers_of_another_disk_are_refused(disk, tmp_path):
    other = Layer(os.memfd_create("other"), SIZE + 512)
    other.freeze()
    growing = disk.new_layer()
    for layer in (other, growing):
        with pytest.raises(ValueError, match="not of this disk"):
            disk.overlay.restore([layer])
    frozen = disk.new_layer()
    frozen.freeze()
    with pytest.raises(ValueError, match="at most"):
        disk.overlay.restore([frozen] * (DEPTH_LIMIT + 1))


def test_a_layer_is_written_down_and_loaded(disk):
    disk.overlay.write(3 * CLUSTER_BYTES, b"x" * CLUSTER_BYTES)
    disk.overlay.write(9 * CLUSTER_BYTES + 512, b"y" * 512)
    (layer,) = disk.overlay.freeze()
    extents = list(layer.extents())
    assert extents == [(3 * CLUSTER_BYTES, CLUSTER_BYTES), (9 * CLUSTER_BYTES, CLUSTER_BYTES)]
    loaded = disk.new_layer()
    for offset, length in extents:
        loaded.fill(offset, os.pread(layer.fd, length, offset))
    loaded.freeze()
    child = disk.fork([loaded])
    assert whole(child) == whole(disk)
    child.close()
    for offset, data in ((1, bytes(4096)), (0, bytes(100)), (1 << 40, bytes(4096))):
        with pytest.raises(ValueError):
            disk.new_layer().fill(offset, data)
    with pytest.raises(ValueError):
        loaded.fill(0, bytes(4096))


def test_forks_share_what_is_frozen_and_nothing_else(disk):
    disk.overlay.write(0, b"before".ljust(512))
    layers = disk.overlay.freeze()
    children = [disk.fork(layers) for _ in range(3)]
    for number, child in enumerate(children):
        child.overlay.write(0, f"child {number}".encode().ljust(512))
    disk.overlay.write(0, b"parent".ljust(512))
    assert disk.overlay.read(0, 6) == b"parent"
    disk.close()
    for number, child in enumerate(children):
        assert child.overlay.read(0, 7) == f"child {number}".encode()
        child.overlay.restore(layers)
        assert child.overlay.read(0, 6) == b"before"
        child.close()


def test_the_image_is_shared_with_readers_and_kept_from_writers(image, disk):
    again = OverlayDisk.above(str(image))
    again.close()
    with pytest.raises(BusyError):
        Disk.open(str(image), read_only=False)


def test_a_file_goes_on_where_it_was(image, tmp_path):
    path = tmp_path / "over"
    disk = OverlayDisk.above(str(image), str(path))
    disk.overlay.write(0, b"first".ljust(512))
    with pytest.raises(BusyError):
        OverlayDisk.above(str(image), str(path))
    disk.close()
    disk = OverlayDisk.above(str(image), str(path))
    assert disk.overlay.read(0, 5) == b"first"
    disk.overlay.freeze()
    disk.overlay.write(512, b"second".ljust(512))
    disk.close()
    disk = OverlayDisk.above(str(image), str(path))
    assert disk.overlay.read(0, 1024).split() == [b"first", b"second"]
    disk.close()
    assert path.stat().st_blocks * 512 < SIZE // 2
    assert sorted(tmp_path.iterdir()) == [image, path]


@pytest.mark.parametrize("damage", ["magic", "version", "cut", "other disk", "image", "noise"])
def test_a_file_that_does_not_fit_is_refused(image, tmp_path, damage):
    path = tmp_path / "over"
    OverlayDisk.above(str(image), str(path)).close()
    data = bytearray(path.read_bytes())
    at = data.index(b"VMM-OVER")
    if damage == "magic":
        data[at] ^= 1
    elif damage == "version":
        data[at + 8] = 9
    elif damage == "cut":
        del data[-1:]
    elif damage == "noise":
        data[:] = os.urandom(SIZE)
    path.write_bytes(data)
    if damage == "other disk":
        os.truncate(image, SIZE - 20 * CLUSTER_BYTES)
    elif damage == "image":
        os.utime(image, ns=(1, 1))
    with pytest.raises(ConfigError, match="over"):
        OverlayDisk.above(str(image), str(path))
    # Whoever looks closer: the refusal has closed both.
    Disk.open(str(image), read_only=False).close()


def test_hostile_bits_are_only_bits(image, tmp_path):
    path = tmp_path / "over"
    OverlayDisk.above(str(image), str(path)).close()
    data = bytearray(path.read_bytes())
    data[-4096:] = b"\xff" * 4096
    path.write_bytes(data)
    disk = OverlayDisk.above(str(image), str(path))
    assert whole(disk) == bytes(SIZE)
    assert sum(length for _, length in disk.overlay.top.extents()) >= SIZE
    disk.close()


def test_no_path_for_it(image, tmp_path):
    with pytest.raises(VmmError, match="cannot open the overlay"):
        OverlayDisk.above(str(image), str(tmp_path / "no" / "over"))
    with pytest.raises(VmmError):
        OverlayDisk.above(str(image), str(tmp_path))


def test_a_full_host_is_an_error_and_what_was_there_stays(image):
    disk = OverlayDisk.above(str(image))
    before = whole(disk)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * CLUSTER_BYTES + 100, hard))
        with pytest.raises(OSError):
            disk.overlay.write(9 * CLUSTER_BYTES, b"z" * 3 * CLUSTER_BYTES)
        with pytest.raises(OSError):
            disk.overlay.write(20 * CLUSTER_BYTES + 512, b"z" * 512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    now = whole(disk)
    assert now[: 9 * CLUSTER_BYTES] == before[: 9 * CLUSTER_BYTES]
    assert now[10 * CLUSTER_BYTES :] == before[10 * CLUSTER_BYTES :]
    disk.overlay.write(20 * CLUSTER_BYTES + 512, b"z" * 512)
    assert disk.overlay.read(20 * CLUSTER_BYTES + 512, 512) == b"z" * 512
    disk.close()


def test_an_image_that_shrinks_is_an_error(image):
    disk = OverlayDisk.above(str(image))
    os.truncate(image, 4 * CLUSTER_BYTES)
    with pytest.raises(OSError):
        whole(disk)
    with pytest.raises(OSError):
        disk.overlay.write(8 * CLUSTER_BYTES + 512, bytes(512))
    disk.overlay.write(8 * CLUSTER_BYTES, bytes(CLUSTER_BYTES))
    disk.close()


def test_nothing_stays_open(image, tmp_path):
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for path in (None, str(tmp_path / "over")):
        disk = OverlayDisk.above(str(image), path)
        disk.overlay.write(0, bytes(512))
        layers = disk.overlay.freeze()
        disk.overlay.write(0, bytes(512))
        disk.fork(layers).close()
        del layers
        disk.close()
        disk.close()
    assert count() == before


def test_merged_layers_are_what_they_were(disk):
    for number in range(5):
        disk.overlay.write(number * 2048, bytes([number]) * 4096)
        disk.overlay.freeze()
    then = whole(disk)
    one = merge(disk.overlay.layers, disk.new_layer())
    one.freeze()
    disk.overlay.restore([one])
    assert whole(disk) == then


def test_an_overlay_needs_a_layer_of_its_own():
    with pytest.raises((TypeError, ValueError)):
        Overlay(-1, SIZE, lambda: None)
