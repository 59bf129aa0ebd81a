"""A slow or far network on one machine: namespaces joined by a switch with a rate and a delay per node.

    with ShapedNetwork(workers=4, mbit=100, delay_ms=10) as network:
        processes = [network.popen(node, [sys.executable, "train.py"]) for node in range(4)]
        codes = [process.wait() for process in processes]

Every node is a Linux network namespace of its own with one interface, `eth0`. The interface is a TUN device whose other
end is held by a small user-space switch: it reads whole packets, keeps each for as long as the sender's uplink, the way
and the receiver's downlink would take, and hands it on. Nothing is dropped and the queues have no end, so TCP never
sees a loss. Needs Linux, root, /dev/net/tun and iproute2, and no kernel module for traffic shaping. See that it holds
what it says with

    python benchmarks/shaped_network.py --workers 4 --mbit 100 --delay-ms 10

It never touches the interfaces, routes or firewall of the machine itself; what it makes goes when it ends, also after
an error or Ctrl-C, and what a killed run left behind is removed by the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["NetworkUnavailable", "PrivateLoopback", "ShapedNetwork", "stop_on_sigterm", "why_unavailable"]

_HERE = Path(__file__).resolve().parent
_SUBNET = "10.77.0"
_MOST_NODES = 64
_PREFIX = "shaped"
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_LARGEST_BURST_SECONDS = 0.005
_serials = itertools.count()  # a process may hold several networks
_LARGEST_WINDOW_BYTES = 32 << 20
_TCP_SETTINGS = {
    "tcp_rmem": f"4096 131072 {_LARGEST_WINDOW_BYTES}",
    "tcp_slow_start_after_idle": "0",  # training is bursts with pauses: the same for everybody
    "tcp_no_metrics_save": "1",  # one measurement must not prepare the next
    "tcp_congestion_control": "reno",
}


class NetworkUnavailable(RuntimeError):
    """A shaped network cannot be made here; the message says what is missing."""


def why_unavailable() -> str | None:
    """What is missing on this machine for a shaped network, or `None` when it can be made."""
    if not sys.platform.startswith("linux"):
        return f"a shaped network needs Linux (network namespaces, TUN); this is {sys.platform}"
    if os.geteuid() != 0:
        return f"a shaped network needs root, to make namespaces and TUN devices; the user id is {os.geteuid()}"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return (
            "a shaped network needs /dev/net/tun, which is not there or may not be opened; try `modprobe tun`, or"
            " give the container that device and the capabilities NET_ADMIN and SYS_ADMIN"
        )
    if shutil.which("ip") is None:
        return "a shaped network needs the command `ip` (package iproute2)"
    return None


def stop_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: through every `with` block that has something to clean up."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)


class _Namespaces:
    """Named network namespaces and the processes in them; both end with the `with` block."""

    def __init__(self, count: int) -> None:
        if (reason := why_unavailable()) is not None:
            raise NetworkUnavailable(reason)
        serial = next(_serials)
        self._names = [f"{_PREFIX}-{os.getpid()}-{serial}-{node}" for node in range(count)]
        self._processes: list[subprocess.Popen[Any]] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Any:
        try:
            _remove_leftovers()
            for name in self._names:
                _ip("netns", "add", name)
                self._undo.callback(_ip, "netns", "del", name, check=False)
                _ip("-n", name, "link", "set", "lo", "up")
            self._undo.callback(self._end_processes)
            self._connect()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def namespace(self, node: int) -> str:
        """The path by which a process can enter a node's namespace."""
        return f"/run/netns/{self._names[node]}"

    def _connect(self) -> None:
        """What a subclass adds to namespaces that have only a loopback interface."""

    def _start(
        self, namespace: int, command: Sequence[str], env: Mapping[str, str] | None, options: dict[str, Any]
    ) -> subprocess.Popen[Any]:
        # A session of its own: Ctrl-C is for the one who holds the network, and that one ends the processes.
        process = subprocess.Popen(
            ["ip", "netns", "exec", self._names[namespace], *command],
            env={**os.environ, **(env or {})},
            start_new_session=True,
            **options,
        )
        self._processes.append(process)
        return process

    def _end_processes(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()


class PrivateLoopback(_Namespaces):
    """All workers in one namespace over its loopback interface: a free network, and a byte counter that is theirs.

    Raises:
        NetworkUnavailable: when made, with what is missing.
    """

    interface = "lo"

    def __init__(self) -> None:
        super().__init__(1)

    def address(self, node: int) -> str:
        """Where a worker can be reached."""
        return "127.0.0.1"

    def popen(
        self, node: int, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command as a worker; `options` are those of `subprocess.Popen`, `env` is added to the environment."""
        return self._start(0, command, env, options)


class ShapedNetwork(_Namespaces):
    """N nodes joined by a switch, each with its own rate and delay.

    Args:
        workers: N, the number of nodes, 2 to 64.
        mbit: rate in Mbit/s of each node's uplink and of its downlink, Ethernet framing included; `None` sets no limit.
            One number for all nodes, or N.
        delay_ms: one-way delay in milliseconds; between nodes with different delays it is their mean.

    Raises:
        ValueError: an argument is out of range.
        NetworkUnavailable: this machine cannot make one; the message says what is missing.
    """

    interface = "eth0"

    def __init__(
        self, workers: int, mbit: float | Sequence[float] | None = None, delay_ms: float | Sequence[float] = 0.0
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or not 2 <= workers <= _MOST_NODES:
            raise ValueError(f"workers must be an integer from 2 to {_MOST_NODES}, found {workers!r}")
        self.mbit = None if mbit is None else _one_each("mbit", mbit, workers)
        self.delay_ms = _one_each("delay_ms", delay_ms, workers)
        if self.mbit is not None and min(self.mbit) <= 0:
            raise ValueError(f"mbit must be above 0, or None for no limit, found {mbit!r}")
        if min(self.delay_ms) < 0:
            raise ValueError(f"delay_ms must be at least 0, found {delay_ms!r}")
        super().__init__(workers)
        self._devices: list[int] = []

    def address(self, node: int) -> str:
        """The IPv4 address of a node."""
        return f"{_SUBNET}.{node + 1}"

    def popen(
        self, node: int, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command on a node; `options` are those of `subprocess.Popen`, `env` is added to the environment."""
        return self._start(node, command, env, options)

    def _connect(self) -> None:
        for node, name in enumerate(self._names):
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            self._undo.callback(os.close, device)
            self._devices.append(device)
            label = f"s{os.getpid()}n{node}"
            flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", label.encode(), flags))
            # One read then moves up to 64 KB that the kernel would cut into packets of 1,500 bytes only on real wires.
            fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
            _ip("link", "set", label, "netns", name, "name", self.interface)
            _ip("-n", name, "link", "set", self.interface, "txqueuelen", "20000",
                "gso_max_size", str(self._largest_burst_bytes(node)), "up")  # fmt: skip
            _ip("-n", name, "addr", "add", f"{self.address(node)}/24", "dev", self.interface, "noprefixroute")
            # Nothing is lost here, so a timeout can only be mistaken: a queue that has just filled looks like a loss.
            _ip("-n", name, "route", "add", f"{_SUBNET}.0/24", "dev", self.interface, "rto_min", "5s")
            tcp = {"tcp_wmem": f"4096 65536 {self._largest_window_bytes(node)}", **_TCP_SETTINGS}
            settings = " && ".join(f"echo {value} > /proc/sys/net/ipv4/{key}" for key, value in tcp.items())
            _ip("netns", "exec", name, "sh", "-c", settings)
        self._start_switch()

    def _largest_burst_bytes(self, node: int) -> int:
        """A burst that takes no longer than 5 ms, so that a short message need not wait behind 64 KB."""
        if self.mbit is None:
            return 65_536
        return int(min(65_536, max(3_000, self.mbit[node] * 1e6 / 8 * _LARGEST_BURST_SECONDS)))

    def _largest_window_bytes(self, node: int) -> int:
        """Some times what fills the way.

        Nothing is ever dropped, so TCP would otherwise fill the queue with seconds of data that every acknowledgement
        has to wait behind, until the sender believes them lost.
        """
        if self.mbit is None:
            return _LARGEST_WINDOW_BYTES
        round_trip_seconds = 2e-3 * max(self.delay_ms)
        filled = self.mbit[node] * 1e6 / 8 * (0.1 + 8 * round_trip_seconds)
        return int(min(_LARGEST_WINDOW_BYTES, max(1 << 20, filled)))

    def _start_switch(self) -> None:
        rates = ["0"] * len(self._devices) if self.mbit is None else [f"{rate:g}" for rate in self.mbit]
        # It ends when its standard input does, also when this process is killed.
        switch = subprocess.Popen(
            [sys.executable, str(_HERE / "shaped_switch.py"), ",".join(map(str, self._devices)), ",".join(rates),
             ",".join(f"{delay:g}" for delay in self.delay_ms)],
            pass_fds=self._devices, stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._undo.callback(_end, switch)


def _end(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _ip(*arguments: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise NetworkUnavailable(
            f"`ip {' '.join(arguments)}` failed: {done.stderr.strip() or f'exit code {done.returncode}'}; in a"
            " container, give it the capabilities NET_ADMIN and SYS_ADMIN"
        )


def _remove_leftovers() -> None:
    """Remove the namespaces of runs that were killed: the names hold the process that made them."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*-*-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _ip("netns", "del", path.name, check=False)


def _one_each(name: str, value: float | Sequence[float], workers: int) -> list[float]:
    if isinstance(value, (int, float)):
        return [float(value)] * workers
    if len(value) != workers:
        raise ValueError(f"{name} must be one number or one for each of the {workers} nodes, found {len(value)}")
    return [float(each) for each in value]


def main() -> int:
    """Make a network, measure its round-trip time and throughput with plain sockets, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mbit", type=float, help="rate of each node, Mbit/s; without it there is no limit")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one-way delay")
    arguments = parser.parse_args()
    from shaped_probe import check_network

    stop_on_sigterm()
    try:
        with ShapedNetwork(arguments.workers, arguments.mbit, arguments.delay_ms) as network:
            return 0 if check_network(network, arguments.workers, arguments.mbit, arguments.delay_ms) else 1
    except (NetworkUnavailable, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
