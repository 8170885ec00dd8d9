"""The control socket: no client ends the instance, no instance ends a client."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time

import pytest

from vmm.run import control
from vmm.run.control import CONNECTIONS_MAX, ControlServer, ask
from vmm.run.eventloop import EventLoop

BIG = {"vcpus": ["x" * 100] * 40_000}


def handle(request):
    if request.get("command") == "big":
        return BIG
    if request.get("command") == "break":
        return [][1]
    if request.get("command") == "formless":
        return {"x": object()}
    return {"got": request}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "CONNECTION_SECONDS", 0.5)
    path = str(tmp_path / "control")
    loop = EventLoop()
    made = ControlServer(path, loop, handle)
    stop: list[bool] = []
    thread = threading.Thread(target=lambda: loop.run_until(lambda: bool(stop)))
    wake = os.eventfd(0)
    loop.add(wake, lambda: stop.append(True))
    thread.start()
    yield path
    assert thread.is_alive()
    os.eventfd_write(wake, 1)
    thread.join()
    made.close()
    loop.close()
    os.close(wake)
    assert not os.path.exists(path)


def connect(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(5)
    link.connect(path)
    return link


def test_requests_and_answers(server):
    assert ask(server, {"command": "status"}) == {"got": {"command": "status"}}


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\n", b"[1]\n", b"\n", b"\xff\xfe\n", b"[" * 4000 + b"\n", b"NaN\n", b"\0\n",
        b'{"a":' * 600 + b"\n", b"9" * 4000 + b"\n", b'{"command": 1e999}\n',
        b'{"command": "break"}\n', b'{"command": "formless"}\n',
    ],
)  # fmt: skip
def test_nonsense_gets_an_error(server, sent):
    with connect(server) as link:
        link.sendall(sent)
        assert "error" in json.loads(link.makefile().readline())
    assert ask(server, {}) == {"got": {}}


def test_a_client_that_leaves_at_once(server):
    for sent in (b"", b"{", b'{"command": "big"}\n'):
        for _ in range(20):
            with connect(server) as link:
                link.sendall(sent)
    assert ask(server, {}) == {"got": {}}


def test_an_answer_that_fits_no_buffer(server):
    assert ask(server, {"command": "big"}) == BIG


def test_idle_clients_lock_nobody_out(server):
    links = [connect(server) for _ in range(4 * CONNECTIONS_MAX)]
    try:
        for _ in range(10):
            assert ask(server, {}) == {"got": {}}
    finally:
        for link in links:
            link.close()


@pytest.mark.parametrize("sent", [b"", b'{"command": "big"}\n'])
def test_who_says_or_reads_nothing_is_dropped(server, sent):
    with connect(server) as link:
        link.sendall(sent)
        time.sleep(1.0)
        received = 0
        while data := link.recv(1 << 20):
            received += len(data)
        assert received < len(json.dumps(BIG))


def test_a_slow_sender_is_dropped(server):
    with connect(server) as link:
        began = time.monotonic()
        with pytest.raises(OSError, match="."):  # noqa: PT012
            while time.monotonic() - began < 4:
                link.sendall(b" ")
                time.sleep(0.05)
    assert time.monotonic() - began < 3


def test_no_descriptor_not_even_to_turn_a_client_away(tmp_path, monkeypatch):
    """Another thread takes the spare one: the listener rests, and does not spin."""
    monkeypatch.setattr(control, "PAUSE_SECONDS", 0.2)
    loop = EventLoop()
    made = ControlServer(str(tmp_path / "control"), loop, handle)

    def none_left() -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    real = control._spare
    monkeypatch.setattr(control, "_spare", none_left)
    with connect(made._path):
        made._turn_away(OSError(errno.EMFILE, "Too many open files"))
    assert made._listener.fileno() not in loop._callbacks
    monkeypatch.setattr(control, "_spare", real)
    loop.run_until(lambda: made._listener.fileno() in loop._callbacks)
    made.close()
    loop.close()


def test_silence_and_floods_do_not_block_others(server):
    links = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for link in links:
        link.connect(server)
    # Those that called last: among so many the first ones may have been dropped already.
    links[-1].sendall(b"{")
    flood = links[-2]
    flood.settimeout(5)
    try:
        flood.sendall(b"x" * 100_000)
        assert flood.recv(1) == b""
    except OSError:
        pass
    for link in links:
        link.close()
    # Until the server has seen that they are gone, one client more is one too many.
    deadline = time.monotonic() + 5
    while True:
        try:
            answer = ask(server, {})
            break
        except ConnectionError:
            assert time.monotonic() < deadline
    assert answer == {"got": {}}


@pytest.fixture
def hostile(tmp_path):
    """A server that answers each client with these bytes: hostile(answer)."""
    path = str(tmp_path / "hostile")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threads = []

    def serve(answer: bytes, pause: float) -> None:
        link, _ = listener.accept()
        with link:
            try:
                link.recv(1000)
                for at in range(0, len(answer), 1 << 16):
                    link.sendall(answer[at : at + (1 << 16)])
                for _ in range(int(3 / pause) if pause else 0):
                    link.sendall(b" ")
                    time.sleep(pause)
            except OSError:
                return

    def made(answer: bytes, pause: float = 0) -> str:
        threads.append(threading.Thread(target=serve, args=(answer, pause)))
        threads[-1].start()
        return path

    yield made
    for thread in threads:
        thread.join()
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"half", b"\n", b"[]\n", b"nonsense\n", b"[" * 100_000 + b"\n", b"\xff\n", b"{}x\n",
        b'{"timeout_s": NaN}\n', b'{"timeout_s": ' + b"9" * 10_000 + b"}\n", b"x" * (5 << 20),
    ],
)  # fmt: skip
def test_a_client_survives_any_answer(hostile, answer):
    with pytest.raises(OSError, match="."):
        ask(hostile(answer), {"command": "status"})


def test_a_client_does_not_wait_for_ever(hostile):
    began = time.monotonic()
    with pytest.raises(OSError, match="."):
        ask(hostile(b"{", pause=0.1), {}, seconds=0.5)
    assert time.monotonic() - began < 2


def test_what_is_no_socket_is_not_asked(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("hostile")
    for name in ("fifo", "file", "link"):
        with pytest.raises(OSError, match="."):
            ask(str(tmp_path / name), {}, seconds=1)


def test_another_user_is_not_asked(server):
    with pytest.raises(PermissionError, match=f"of user {os.geteuid()} answers"):
        ask(server, {}, owner=os.geteuid() + 1)
