"""benchmarks/shaped_network.py: the switch's arithmetic, and real namespaces where there can be any."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # scripts, not a package

import shaped_network
from shaped_switch import Switch, read_header


def test_a_packet_takes_its_turn_on_the_uplink_the_way_and_the_downlink() -> None:
    switch = Switch(mbit=[8, 8, 8], delay_ms=[100, 100, 100])  # 1 MB a second
    switch.enter(0, 1, 500_000, b"first", now=0.0)
    switch.enter(0, 2, 500_000, b"second", now=0.0)  # waits for the first on the uplink
    switch.enter(2, 1, 500_000, b"third", now=0.0)  # meets the first on the downlink
    assert switch.seconds_to_next(now=0.0) == pytest.approx(0.6)
    assert switch.leave(now=0.599) == []
    assert switch.leave(now=0.601) == [(1, b"first")]
    assert switch.leave(now=1.099) == []
    assert sorted(switch.leave(now=1.101)) == [(1, b"third"), (2, b"second")]
    assert switch.seconds_to_next(now=2.0) is None


def test_without_a_limit_a_packet_takes_the_mean_of_both_delays_and_keeps_its_place() -> None:
    switch = Switch(mbit=[0, 0], delay_ms=[10, 30])
    for number in range(3):
        switch.enter(0, 1, 1500, bytes([number]), now=1.0)
    assert switch.leave(now=1.0199) == []
    assert switch.leave(now=1.0201) == [(1, b"\0"), (1, b"\1"), (1, b"\2")]


def test_what_is_not_for_a_node_is_not_carried() -> None:
    header = bytes(10)
    ipv4 = bytes([0x45]) + bytes(18)
    assert read_header(header + ipv4 + bytes([2]), nodes=2) == (1, 20 + 38)
    assert read_header(header + ipv4 + bytes([3]), nodes=2) is None
    assert read_header(header + bytes([0x60]) + bytes(39), nodes=2) is None  # IPv6
    assert read_header(header + ipv4, nodes=2) is None  # cut off


def test_segments_of_a_large_packet_carry_a_header_each() -> None:
    ip, tcp = bytes([0x45]) + bytes(18) + bytes([1]), bytes(12) + bytes([8 << 4]) + bytes(19)
    packet = struct.pack("=BBHHHH", 1, 1, 52, 1448, 0, 0) + ip + tcp + bytes(3 * 1448 + 1)
    assert read_header(packet, nodes=2) == (0, 3 * 1448 + 1 + 4 * (20 + 32 + 38))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 1}, "workers must be an integer from 2 to 64, found 1"),
        ({"workers": 2, "mbit": 0}, "mbit must be above 0, or None for no limit, found 0"),
        ({"workers": 2, "delay_ms": -1}, "delay_ms must be at least 0, found -1"),
        ({"workers": 3, "mbit": [1, 2]}, "mbit must be one number or one for each of the 3 nodes, found 2"),
    ],
)
def test_networks_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        shaped_network.ShapedNetwork(**arguments)


def _reason() -> str | None:
    """Why no network can be made here; making one is the only sure test (a container may forbid it to root)."""
    reason = shaped_network.why_unavailable()
    if reason is None:
        try:
            with shaped_network.ShapedNetwork(2):
                pass
        except (shaped_network.NetworkUnavailable, OSError) as error:
            reason = str(error)
    return reason


@pytest.fixture(scope="module")
def root_and_tun() -> None:
    if (reason := _reason()) is not None:
        print(f"skipped: {reason}")
        pytest.skip(reason)


def _namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").glob(f"shaped-{os.getpid()}-*")}


@pytest.mark.processes
@pytest.mark.usefixtures("root_and_tun")
def test_a_round_trip_takes_two_delays_and_a_transfer_its_rate() -> None:
    ping = (
        "import socket, sys, time\n"
        "server = socket.create_server((sys.argv[1], 7000))\n"
        "print('ready', flush=True)\n"
        "connection, _ = server.accept()\n"
        "connection.sendall(connection.recv(1))\n"
        "while connection.recv(1 << 16): pass\n"
        "connection.sendall(b'e')\n"
    )
    pong = (
        "import socket, sys, time\n"
        "started = time.perf_counter(); connection = socket.create_connection((sys.argv[1], 7000))\n"
        "started = time.perf_counter(); connection.sendall(b'p'); connection.recv(1); trip = time.perf_counter()\n"
        "connection.sendall(bytes(1_000_000)); connection.shutdown(socket.SHUT_WR); connection.recv(1)\n"
        "print(trip - started, time.perf_counter() - trip)\n"
    )
    with shaped_network.ShapedNetwork(2, mbit=20, delay_ms=30) as lab:
        assert len(_namespaces()) == 2
        server = lab.popen(0, [sys.executable, "-c", ping, lab.address(0)], stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        client = lab.popen(1, [sys.executable, "-c", pong, lab.address(0)], stdout=subprocess.PIPE, text=True)
        output, _ = client.communicate(timeout=60)
        server.communicate(timeout=60)
    assert not _namespaces()
    round_trip, transfer = map(float, output.split())
    # From below exactly: a network can only be slower than its rate and delay. From above with room for a busy machine.
    assert 0.060 <= round_trip < 0.5
    assert 0.4 + 0.060 <= transfer < 4


@pytest.mark.processes
@pytest.mark.usefixtures("root_and_tun")
def test_an_error_leaves_no_namespace_and_no_process() -> None:
    sleepers = []

    def fail() -> None:
        with shaped_network.ShapedNetwork(2) as lab:
            sleepers.append(lab.popen(0, ["sleep", "1000"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sleepers[0].returncode is not None
    assert not _namespaces()
