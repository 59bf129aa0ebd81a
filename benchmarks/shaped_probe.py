"""What a `ShapedNetwork` really gives: round-trip time and throughput between neighbours, with plain sockets.

Every node sends to the next one at the same time, so a switch that is too slow for all of them shows.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from shaped_network import ShapedNetwork

__all__ = ["check_network", "probe"]

_PORT = 28_500
_PINGS = 20
_CHUNK = bytes(1 << 16)
_UNLIMITED_BYTES = 64 << 20
_TRANSFER_SECONDS = 4.0


def check_network(network: ShapedNetwork, nodes: int, mbit: float | None, delay_ms: float) -> bool:
    """Measure between all neighbours at once, print a table, and say whether the network is what was asked for.

    The round trip must take two delays and at most 2 ms and a tenth more; the throughput must be between 85 and 100
    per cent of the rate, of which headers take about six. Without a limit the processor sets the throughput.
    """
    size = int(mbit * 1e6 / 8 * _TRANSFER_SECONDS) if mbit else _UNLIMITED_BYTES
    processes = [
        network.popen(
            node,
            [sys.executable, str(Path(__file__).resolve()), network.address(node), network.address((node + 1) % nodes),
             str(size)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for node in range(nodes)
    ]  # fmt: skip
    for process in processes:  # everybody's pings first: they must not meet anybody's transfer
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has failed; its exit code will tell
            process.stdin.write("\n")
            process.stdin.flush()
    good = True
    asked = f"{mbit:g} Mbit/s" if mbit else "no limit"
    print(f"asked for: a round trip of {2 * delay_ms:g} ms, {asked}")
    print(f"{'from':>4} {'to':>4} {'round trip':>11} {'throughput':>15}")
    for node, process in enumerate(processes):
        output, _ = process.communicate(timeout=120)
        if process.returncode:
            print(f"{node:4} {(node + 1) % nodes:4} failed with exit code {process.returncode}")
            good = False
            continue
        result = json.loads(output)
        round_trip_ms, measured_mbit = result["round_trip_ms"], result["mbit"]
        good &= 2 * delay_ms <= round_trip_ms <= 2.2 * delay_ms + 2
        good &= mbit is None or 0.85 * mbit <= measured_mbit <= mbit
        print(f"{node:4} {(node + 1) % nodes:4} {round_trip_ms:8.2f} ms {measured_mbit:8.1f} Mbit/s")
    print("the network is what was asked for" if good else "the network is NOT what was asked for")
    return good


def probe(own_address: str, next_address: str, size: int) -> dict[str, float]:
    """Serve one neighbour and measure the other; between pings and transfer, wait for a line on the standard input.

    Returns:
        `round_trip_ms`, the median of 20 one-byte round trips to the next node, and `mbit`, the rate at which that node
        received `size` bytes.
    """
    listener = socket.create_server((own_address, _PORT))
    server = threading.Thread(target=_serve, args=(listener, size), daemon=True)
    server.start()
    connection = _connect(next_address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    round_trips = []
    for _ in range(_PINGS):
        started = time.perf_counter()
        connection.sendall(b"p")
        connection.recv(1)
        round_trips.append(time.perf_counter() - started)
    print("pinged", flush=True)
    sys.stdin.readline()
    for _ in range(0, size, len(_CHUNK)):
        connection.sendall(_CHUNK)
    seconds = float(connection.makefile().readline())
    server.join(60)
    return {"round_trip_ms": 1e3 * statistics.median(round_trips), "mbit": size * 8e-6 / seconds}


def _serve(listener: socket.socket, size: int) -> None:
    """Answer the pings, then receive, and send back how many seconds the last nine tenths of the bytes took, scaled."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(_PINGS):
        connection.sendall(connection.recv(1))
    total, received, skipped, started = -(-size // len(_CHUNK)) * len(_CHUNK), 0, 0, 0.0
    buffer = memoryview(bytearray(1 << 20))
    while received < total:
        received += connection.recv_into(buffer)
        if not skipped and received >= total // 10:  # TCP needs some round trips to find the rate
            skipped, started = received, time.perf_counter()
    seconds = (time.perf_counter() - started) * size / (total - skipped)
    connection.sendall(f"{seconds}\n".encode())
    connection.close()


def _connect(address: str) -> socket.socket:
    """The neighbour may not listen yet."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((address, _PORT), timeout=60)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
