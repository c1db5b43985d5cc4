"""Network back ends: taps of a namespace of their own, passt, sockets, and what a capture holds."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import time

import pytest
from guest.host import install
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.errors import NetError
from pyvmm_virtio.backends.net import HEADER_SIZE
from pyvmm_virtio.backends.passt import Passt
from pyvmm_virtio.backends.pcap import PcapWriter
from pyvmm_virtio.backends.stream import StreamNet
from pyvmm_virtio.backends.tap import Tap
from pyvmm_virtio.constants import net as c

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from pyvmm_virtio.backends.net import NetBackend

FRAME = b"\xff" * 6 + b"\x52\x54\x00\x12\x34\x56" + b"\x88\xb5" + bytes(range(50))


def receive(backend: NetBackend, size: int = 2048, pair: int = 0) -> bytes:
    buffer = bytearray(size)
    with memoryview(buffer) as view:
        return bytes(buffer[: backend.receive(pair, [view[:20], view[20:]])])


def send(backend: NetBackend, frame: bytes, pair: int = 0) -> bool:
    view = memoryview(frame)
    return backend.send(pair, [view[:12], view[12:]])


# sockets


def cable(kind: str) -> tuple[NetBackend, NetBackend]:
    if kind == "datagram":
        return DatagramNet.pair(1500)
    one, other = socket.socketpair()
    return StreamNet(one, 1500), StreamNet(other, 1500)


@pytest.mark.parametrize("kind", ["datagram", "stream"])
def test_frames_come_out_as_they_went_in(kind: str) -> None:
    one, other = cable(kind)
    frames = [FRAME, FRAME + bytes(60000), FRAME[:14]]
    for frame in frames:
        assert send(one, frame)
    assert [receive(other, 70000) for _ in frames] == frames
    assert receive(other) == b""
    assert one.mtu == 1500
    assert "up" in repr(one)
    one.set_offloads(0)
    one.set_queue_pairs(1)
    one.close()
    other.close()


@pytest.mark.parametrize("kind", ["datagram", "stream"])
def test_a_full_network_takes_no_more_and_loses_nothing(kind: str) -> None:
    one, other = cable(kind)
    sent = 0
    while send(one, FRAME + struct.pack("<I", sent) + bytes(4000)):
        sent += 1
    assert sent
    got = 0
    while True:
        frame = receive(other, 8192)
        if not frame:
            # the rest of a frame that was sent in part goes before the next
            if not send(one, FRAME + struct.pack("<I", sent) + bytes(4000)):
                continue
            frame = receive(other, 8192)
            assert frame
            assert struct.unpack_from("<I", frame, len(FRAME))[0] == got
            break
        assert struct.unpack_from("<I", frame, len(FRAME))[0] == got
        got += 1
    one.close()
    other.close()


@pytest.mark.parametrize("kind", ["datagram", "stream"])
def test_the_link_is_down_without_another_end(kind: str) -> None:
    for first in ("receive", "send"):
        one, other = cable(kind)
        changes: list[bool] = []
        one.on_link = lambda one=one, changes=changes: changes.append(one.link_up)  # type: ignore[misc]
        other.close()
        if first == "receive":
            assert receive(one) == b""
        for _ in range(3):
            assert send(one, FRAME)
            assert receive(one) == b""
        assert changes == [False]
        assert "down" in repr(one)
        one.close()


def test_a_stream_that_ends_within_a_frame() -> None:
    ours, theirs = socket.socketpair()
    with StreamNet(ours) as net:
        while send(net, FRAME + bytes(60000)):
            pass
        assert not send(net, FRAME), "the rest of a frame comes first"
        assert net.link_up
        theirs.close()
        for _ in range(2):
            assert send(net, FRAME), "it is lost, and nobody waits for room"
            assert not net.link_up


def test_frames_longer_than_the_buffers_are_cut() -> None:
    for kind in ("datagram", "stream"):
        one, other = cable(kind)
        send(one, FRAME)
        send(one, FRAME)
        assert receive(other, 30) == FRAME[:30]
        assert receive(other) == FRAME
        one.close()
        other.close()


@given(st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=8), st.integers(1, 50))
def test_streams_are_cut_anywhere(frames: list[bytes], step: int) -> None:
    ours, theirs = socket.socketpair()
    with StreamNet(ours) as net, theirs:
        data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
        got = []
        for at in range(0, len(data), step):
            theirs.sendall(data[at : at + step])
            while frame := receive(net):
                got.append(frame)
        assert got == frames


@pytest.mark.parametrize("length", [0, 65554, 1 << 31, (1 << 32) - 1])
def test_a_length_that_cannot_be_ends_the_stream(length: int) -> None:
    ours, theirs = socket.socketpair()
    with StreamNet(ours) as net, theirs:
        theirs.sendall(length.to_bytes(4, "big") + FRAME)
        assert receive(net) == b""
        assert not net.link_up
        assert not net.has_frame()


def test_frames_that_are_here_already_are_known_of() -> None:
    ours, theirs = socket.socketpair()
    with StreamNet(ours) as net, theirs:
        theirs.sendall((len(FRAME).to_bytes(4, "big") + FRAME) * 2)
        assert not net.has_frame()
        assert receive(net) == FRAME
        assert net.has_frame()


# taps

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK),
    reason="making a tap interface needs root and /dev/net/tun",
)


@needs_root
def test_a_tap_has_headers_and_offloads() -> None:
    with Tap("pyvmmtest%d") as tap:
        assert tap.name.startswith("pyvmmtest")
        assert tap.header_size == HEADER_SIZE
        assert tap.features >> c.VIRTIO_NET_F_HOST_TSO4 & 1
        assert tap.mtu == 1500
        assert receive(tap) == b""  # it is down
        subprocess.run(["ip", "link", "set", tap.name, "up"], check=True)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as packets:
            packets.bind((tap.name, 0x88B5))
            assert send(tap, bytes(HEADER_SIZE) + FRAME)
            assert packets.recv(2048) == FRAME
            packets.send(FRAME)
            while frame := receive(tap):
                if frame[HEADER_SIZE:] == FRAME:
                    break
            assert frame
        tap.set_offloads((1 << 64) - 1 if tap.features >> c.VIRTIO_NET_F_HOST_USO & 1 else 0xFFFFFF)
        tap.set_offloads(0)
        tap.set_queue_pairs(1)
        assert tap.name in repr(tap)


@needs_root
def test_headers_that_make_no_sense_lose_the_frame() -> None:
    with Tap("pyvmmtest%d") as tap:
        subprocess.run(["ip", "link", "set", tap.name, "up"], check=True)
        nonsense = struct.pack("<BBHHHHH", 1, 1, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0)
        assert send(tap, nonsense + FRAME)
        assert send(tap, bytes(HEADER_SIZE) + FRAME[:3])
        assert tap.dropped == 2


@needs_root
def test_a_tap_with_queues() -> None:
    with Tap("pyvmmtest%d", 4) as tap:
        assert len({tap.fileno(pair) for pair in range(4)}) == 4
        tap.set_queue_pairs(2)
        assert receive(tap, pair=3) == b""
        assert send(tap, bytes(HEADER_SIZE) + FRAME, pair=3)
        tap.set_queue_pairs(4)
        tap.set_queue_pairs(1)
        with pytest.raises(NetError, match=r"it exists with other properties|another process uses it"):
            Tap(tap.name)


@needs_root
def test_a_tap_that_is_deleted_is_an_unplugged_cable() -> None:
    for act in (receive, lambda tap: send(tap, bytes(HEADER_SIZE) + FRAME)):
        with Tap("pyvmmtest%d") as tap:
            changes: list[bool] = []
            tap.on_link = lambda: changes.append(tap.link_up)  # noqa: B023 - called within this turn
            subprocess.run(["ip", "link", "set", tap.name, "up"], check=True)
            while receive(tap):
                pass
            assert changes == []
            subprocess.run(["ip", "link", "delete", tap.name], check=True)
            for _ in range(2):
                act(tap)
            assert changes == [False]


@needs_root
def test_a_tap_that_is_in_use_is_refused_with_the_cure() -> None:
    with Tap("pyvmmtest%d") as tap, pytest.raises(NetError, match="give each machine its own"):
        Tap(tap.name)


@needs_root
def test_without_privilege_the_cure_is_a_command() -> None:
    program = "from pyvmm_virtio.backends.tap import Tap; Tap('pyvmmtest7', 2)"
    command = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ip tuntap add pyvmmtest7 mode tap user $USER multi_queue" in done.stderr


@pytest.mark.parametrize(("name", "pairs"), [("", 1), ("x" * 16, 1), ("x", 0), ("x", 257)])
def test_impossible_taps(name: str, pairs: int) -> None:
    with pytest.raises(NetError, match=r"has 1 to 256|a name of 1 to 15 bytes"):
        Tap(name, pairs)


# passt


@pytest.fixture(scope="session")
def passt() -> None:
    install(["passt"], "which is the guest's way to the network without privileges")


def test_passt_answers_a_guest(passt: None) -> None:
    import select

    with Passt() as network:
        # DHCP's first word, as RFC 2131 has it
        bootp = struct.pack("!BBBBIHHIIII", 1, 1, 6, 0, 0x1234, 0, 0, 0, 0, 0, 0) + b"\x52\x54\0\1\2\3".ljust(
            208, b"\0"
        )
        bootp += b"\x63\x82\x53\x63\x35\x01\x01\xff" + bytes(60)
        udp = struct.pack("!HHHH", 68, 67, 8 + len(bootp), 0) + bootp
        ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4))
        total = sum(struct.unpack("!10H", ip))
        ip[10:12] = (~(total + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
        network.send(0, [memoryview(b"\xff" * 6 + b"\x52\x54\0\1\2\3\x08\x00" + bytes(ip) + udp)])
        for _ in range(20):
            assert select.select([network.fileno()], [], [], 5)[0]
            frame = receive(network, 65536)
            if frame[12:14] == b"\x08\x00" and frame[23] == 17:
                break
        assert frame[42] == 2, "an offer"


def test_a_network_that_has_much_to_say_is_not_kept_waiting(tmp_path: Path) -> None:
    program = tmp_path / "talker"
    program.write_text(f"#!/bin/sh\nhead -c 1000000 /dev/zero >&2\ntouch {tmp_path}/done\nexec sleep 100\n")
    program.chmod(0o755)
    with Passt(program=str(program)):
        deadline = time.monotonic() + 10
        while not (tmp_path / "done").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_passt_says_why_not(passt: None) -> None:
    with pytest.raises(NetError, match="unrecognized option"):
        Passt(["--bogus"])
    with pytest.raises(NetError, match="install Debian's package passt"):
        Passt(program="pyvmm-no-such-program")


# captures


def test_a_capture_is_what_tcpdump_reads() -> None:
    file = io.BytesIO()
    with PcapWriter(file, snaplen=40, clock=lambda: 1_700_000_000_123_456_789) as capture:
        capture.write([memoryview(FRAME[:14]), memoryview(FRAME[14:])])
        capture.write([memoryview(FRAME[:20])])
        capture.flush()
        assert "2 frames" in repr(capture)
    data = file.getvalue()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B23C4D, 2, 4, 0, 0, 40, 1)
    assert struct.unpack_from("<IIII", data, 24) == (1_700_000_000, 123_456_789, 40, len(FRAME))
    assert data[40:80] == FRAME[:40]
    assert len(data) == 24 + 16 + 40 + 16 + 20


def test_a_capture_that_cannot_be_written_ends(caplog: pytest.LogCaptureFixture) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        capture = PcapWriter(io.BytesIO())
        capture._file = full
        for _ in range(3):
            capture.write([memoryview(FRAME)])
        assert capture.frames == 0
        assert caplog.text.count("No space left") == 1
        capture.close()
    capture = PcapWriter("/dev/full")
    capture.write([memoryview(FRAME)])
    capture.close()
    capture.close()
    assert caplog.text.count("No space left") == 2


def test_a_capture_into_a_file_of_its_own(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "frames.pcap")
    capture = PcapWriter(path)
    capture.write([memoryview(FRAME)])
    capture.close()
    capture.close()
    assert os.path.getsize(path) == 24 + 16 + len(FRAME)
