"""gdb's packets: framing, escapes, checksums, and what no debugger sends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.debug.gdb.forms import address_of, breakpoint_of, memory_of, thread_of
from vmm.debug.gdb.packets import (
    AGAIN,
    INTERRUPT,
    PACKET_MAX,
    Decoder,
    Packet,
    ProtocolError,
    encode,
)
from vmm.debug.gdb.resume import orders_of


@given(st.binary(max_size=600), st.integers(1, 50))
def test_what_is_encoded_is_decoded_in_any_pieces(data, step):
    decoder, found = Decoder(), []
    wire = encode(data)
    for at in range(0, len(wire), step):
        found += decoder.feed(wire[at : at + step])
    (packet,) = found
    assert isinstance(packet, Packet)
    assert (packet.data, packet.good) == (data, True)


def test_signals_between_packets():
    found = Decoder().feed(b"+\x03-" + encode(b"g") + b"\x03")
    assert [f if not isinstance(f, Packet) else f.data for f in found] == [
        INTERRUPT, AGAIN, b"g", INTERRUPT,
    ]  # fmt: skip


def test_a_wrong_checksum_is_told():
    (packet,) = Decoder().feed(b"$g#00")
    assert isinstance(packet, Packet)
    assert not packet.good


@pytest.mark.parametrize(
    "wire",
    [b"POST / HTTP/1.1\r\n\r\n$g#67", b"\x00", b"$" + b"x" * (PACKET_MAX + 1),
     b"$" + b"x" * (PACKET_MAX + 1) + b"#00", encode(b"g") + b"junk"],
    ids=["http", "zero", "endless", "long", "behind"],
)  # fmt: skip
def test_what_no_debugger_sends_ends_it(wire):
    with pytest.raises(ProtocolError):
        Decoder().feed(wire)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_crash(data):
    try:
        Decoder().feed(data)
    except ProtocolError:
        return


@pytest.mark.parametrize("text", [b"", b"g", b"0x10", b"1" * 17, b"-1", b" 1", b"+1", b"1_0"])
def test_numbers_are_hexadecimal_and_of_64_bits(text):
    with pytest.raises(ValueError, match="hexadecimal"):
        address_of(text)


def test_forms():
    assert address_of(b"fFfF") == 0xFFFF
    assert thread_of(b"-1") == -1
    assert memory_of(b"10,4") == (16, 4)
    assert breakpoint_of(b"0,1000,1;X1,20") == (0, 0x1000, 1)
    for bad in (b"10", b"10,", b"10,4,5"):
        with pytest.raises(ValueError, match="is no"):
            memory_of(bad)
    with pytest.raises(ValueError, match="is not KIND"):
        breakpoint_of(b"0,1000")


def test_orders():
    def told(text, threads=3):
        return {n: (o.step, o.inside) for n, o in orders_of(text, threads).items()}

    go, step = (False, None), (True, None)
    assert told(b"c") == {1: go, 2: go, 3: go}
    assert told(b"s:2;c") == {2: step, 1: go, 3: go}
    assert told(b"s:2") == {2: step}
    assert told(b"C05:1;c:-1") == {1: go, 2: go, 3: go}
    assert told(b"r1000,1010:1;c") == {1: (True, range(0x1000, 0x1010)), 2: go, 3: go}
    for bad in (b"", b"x", b"t:1", b"c:4", b"r10:1", b"s5", b"Cxx", b"c;;s"):
        with pytest.raises(ValueError, match=r"."):
            orders_of(bad, 3)
