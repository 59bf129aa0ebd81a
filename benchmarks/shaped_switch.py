"""The switch between the nodes of a `ShapedNetwork`: when does a packet that enters now arrive?

A packet waits for its sender's uplink, goes over it, takes the delay of the way, and waits for its receiver's downlink:

    left    = max(uplink free, now) + bytes / rate of the sender
    arrived = max(left + delay, downlink free + bytes / rate of the receiver)

so an idle downlink costs nothing more (the bits come in as they go out), and two senders to one receiver share it.
Started by `ShapedNetwork` as a process of its own, with a real-time priority where that is allowed: a wire does not
wait for a processor.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import itertools
import os
import select
import struct
import sys
import time
from collections.abc import Sequence

__all__ = ["Switch", "read_header"]

_VIRTIO_HEADER_BYTES = 10  # struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_FRAMING_BYTES = 38  # of Ethernet: header 14, checksum 4, preamble 8, gap 12
_READS_A_TURN = 16


def read_header(packet: bytes, nodes: int) -> tuple[int, int] | None:
    """To which node a packet goes and how many bytes it would take on a wire.

    Args:
        packet: a virtio header of 10 bytes, then IPv4. The kernel hands over up to 64 KB of TCP at a time; a wire
            carries them in segments of `gso_size` bytes with all headers each.
        nodes: number of nodes; node k has the address x.x.x.(k + 1).

    Returns:
        The node, from 0, and the bytes with Ethernet framing; `None` for what is not for any node.

    Example: 2,000 bytes of TCP in segments of 1,000, with headers of 20 + 20 bytes.
        >>> tcp = bytes(12) + bytes([5 << 4]) + bytes(7)
        >>> ip = bytes([0x45]) + bytes(18) + bytes([2])
        >>> read_header(struct.pack("=BBHHHH", 1, 1, 40, 1000, 0, 0) + ip + tcp + bytes(2000), nodes=4)
        (1, 2156)
    """
    ip = _VIRTIO_HEADER_BYTES
    if len(packet) < ip + 20 or packet[ip] >> 4 != 4 or not 0 < packet[ip + 19] <= nodes:
        return None
    length, segments, headers = len(packet) - ip, 1, 0
    (gso_size,) = struct.unpack_from("=H", packet, 4)
    if packet[1] and gso_size:
        ip_header = (packet[ip] & 15) * 4
        headers = ip_header + (packet[ip + ip_header + 12] >> 4) * 4
        segments = max(1, -(-(length - headers) // gso_size))
    return packet[ip + 19] - 1, length + (segments - 1) * headers + segments * _FRAMING_BYTES


class Switch:
    """Packets on their way, in order of time.

    Args:
        mbit: rate of each node's uplink and downlink in Mbit/s; 0 has no limit.
        delay_ms: delay of each node; the way between two takes the mean of theirs.

    Example: 12,500 bytes at 1 Mbit/s take 100 ms, and then 10 ms for the way.
        >>> switch = Switch(mbit=[1, 1], delay_ms=[10, 10])
        >>> switch.enter(0, 1, 12_500, b"packet", now=0.0)
        >>> switch.leave(now=0.109), switch.leave(now=0.111)
        ([], [(1, b'packet')])
    """

    def __init__(self, mbit: Sequence[float], delay_ms: Sequence[float]) -> None:
        self._seconds_a_byte = [8e-6 / rate if rate else 0.0 for rate in mbit]
        self._delay = [[(mine + its) / 2e3 for its in delay_ms] for mine in delay_ms]
        self._uplink_free, self._downlink_free = [0.0] * len(mbit), [0.0] * len(mbit)
        self._queue: list[tuple[float, int, int, int, bytes]] = []
        self._serial = itertools.count()  # packets of the same moment stay in their order

    def enter(self, source: int, destination: int, wire_bytes: int, packet: bytes, now: float) -> None:
        """A node sends a packet."""
        left = max(self._uplink_free[source], now) + wire_bytes * self._seconds_a_byte[source]
        self._uplink_free[source] = left
        event = (left + self._delay[source][destination], next(self._serial), destination, wire_bytes, packet)
        heapq.heappush(self._queue, event)

    def leave(self, now: float) -> list[tuple[int, bytes]]:
        """What has arrived by now, with its destinations, in order."""
        arrived = []
        while self._queue and self._queue[0][0] <= now:
            moment, _, destination, wire_bytes, packet = heapq.heappop(self._queue)
            if wire_bytes:
                free = self._downlink_free[destination] + wire_bytes * self._seconds_a_byte[destination]
                self._downlink_free[destination] = max(free, moment)
                if free > moment:  # the downlink is busy: come back when the last bit is over; zero bytes mark that
                    heapq.heappush(self._queue, (free, next(self._serial), destination, 0, packet))
                    continue
            arrived.append((destination, packet))
        return arrived

    def seconds_to_next(self, now: float) -> float | None:
        """How long until something may arrive; `None` when nothing is on its way."""
        return max(0.0, self._queue[0][0] - now) if self._queue else None


def carry(devices: Sequence[int], switch: Switch) -> None:
    """Carry packets between TUN devices until the standard input ends."""
    clock, index = time.monotonic, {device: node for node, device in enumerate(devices)}
    waited_for = [*devices, sys.stdin.fileno()]
    while True:
        ready = select.select(waited_for, [], [], switch.seconds_to_next(clock()))[0]
        for device in ready:
            if device not in index:
                return
            for _ in range(_READS_A_TURN):
                try:
                    packet = os.read(device, 66_000)
                except BlockingIOError:
                    break
                header = read_header(packet, len(devices))
                if header is not None:
                    switch.enter(index[device], *header, packet, clock())
        for destination, packet in switch.leave(clock()):
            with contextlib.suppress(OSError):  # a node that is being taken down
                os.write(devices[destination], packet)


def main() -> None:
    """Descriptors, rates in Mbit/s and delays in ms, each separated by commas."""
    devices, mbit, delay_ms = sys.argv[1:4]
    gc.disable()  # nothing here is cyclic, and a pause would be a pause of the network
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    switch = Switch([float(rate) for rate in mbit.split(",")], [float(delay) for delay in delay_ms.split(",")])
    carry([int(device) for device in devices.split(",")], switch)


if __name__ == "__main__":
    main()
