"""Which hosts take part in a run and by which interface each is reached. Knows no torch and opens no connection.

All of it comes from the environment: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT as the start script is given them;
MASTER_ADDR, LOCAL_WORLD_SIZE and WORLD_SIZE as torchrun gives them to its ranks.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dist.errors import UsageError

LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACE = "lo"
DEFAULT_PORT = 29500
MAX_NODES = 9999
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
SIOCGIFADDR = 0x8915
# An address of no host, from a range set aside for documentation: asked for the route only, nothing is sent.
ELSEWHERE = "198.51.100.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """`nodes` hosts, of which this is number `node`; they meet at `address` and `port`, which are node 0's."""

    nodes: int = 1
    node: int = 0
    address: str = LOOPBACK
    port: int = 0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Hosts:
        """The hosts that the start script is given. Raises UsageError for what cannot be."""
        nodes = _number(environ, "NNODES", 1, 1, MAX_NODES, "the number of hosts")
        if nodes == 1:
            return cls()
        node = _number(environ, "NODE_RANK", None, 0, nodes - 1, "this host's number, from 0 to NNODES - 1")
        port = _number(environ, "MASTER_PORT", DEFAULT_PORT, 1, 65535, "a free port of node 0")
        address = environ.get("MASTER_ADDR", "").strip()
        if not address:
            raise UsageError(
                "MASTER_ADDR is not set.",
                f"With NNODES={nodes} the hosts meet at node 0.",
                "Set it to node 0's address, the same on all hosts.",
            )
        return cls(nodes=nodes, node=node, address=address, port=port)

    @property
    def meeting_point(self) -> str:
        """Where the hosts meet, as a user writes it."""
        return f"{self.address}:{self.port}"


def own_address(master: str, *, is_master: bool) -> str:
    """This host's address on the way to `master`. Raises UsageError if there is no way.

    A host's own name often stands for a loopback address (Debian's default); node 0's is then that of the way out.
    """
    target = resolve(master)
    own = _source_address(target)
    if own is None:
        raise UsageError(
            f"There is no route to MASTER_ADDR={master} ({target}).",
            "This host has no interface that leads there.",
            "Give an address of node 0 in a network that all hosts share.",
        )
    named = master != "localhost" and master != target
    if is_master and named and ipaddress.ip_address(own).is_loopback:
        return _address_of_way_out(master, target)
    return own


def resolve(master: str) -> str:
    """The first address that `master` stands for. Raises UsageError."""
    try:
        found = socket.getaddrinfo(master, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(
            f"MASTER_ADDR={master} cannot be resolved.", f"{reason}.", "Give node 0's IP address."
        ) from None
    return str(found[0][4][0])


def interface_with(address: str, target: str = "") -> str | None:
    """The network interface that has `address`, else the one on the way to `target`, else None."""
    if ipaddress.ip_address(address).version == 6:
        return _interface_with_ipv6(address)
    return next((name for name in interfaces() if _ipv4_of(name) == address), None) or _on_route(target or address)


def interfaces() -> tuple[str, ...]:
    """The names of this host's network interfaces."""
    return tuple(name for _, name in socket.if_nameindex())


def check_interfaces(environ: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError if the user has named a network interface that this host does not have."""
    known = interfaces()
    for variable in INTERFACE_VARIABLES:
        text = environ.get(variable, "")
        if text.startswith("^"):  # NCCL: all but these
            continue
        for name in filter(None, text.removeprefix("=").split(",")):
            name = name.partition(":")[0]
            # NCCL takes the beginning of a name, gloo the whole of it.
            if not any(one.startswith(name) if variable.startswith("NCCL") else one == name for one in known):
                raise UsageError(
                    f"{variable} cannot be {text!r}.",
                    f"This host has no interface {name}; it has {', '.join(known)}.",
                    f"Name one of them, or unset {variable}: the one on the route to MASTER_ADDR is taken.",
                )


def interface_variables(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to a rank's environment so that gloo and NCCL take the right interface; nothing the user has set.

    On one host it is the loopback interface: nothing then listens where other hosts could reach it.
    """
    wanted = [variable for variable in INTERFACE_VARIABLES if not environ.get(variable)]
    size, local = environ.get("WORLD_SIZE", ""), environ.get("LOCAL_WORLD_SIZE", "")
    if not wanted or not size or not local:
        return {}
    if size == local:
        return dict.fromkeys(wanted, LOOPBACK_INTERFACE) if LOOPBACK_INTERFACE in interfaces() else {}
    master = environ.get("MASTER_ADDR", LOOPBACK)
    address = own_address(master, is_master=environ.get("GROUP_RANK", "0") == "0")
    name = interface_with(address, resolve(master))
    return {} if name is None else dict.fromkeys(wanted, name)


def host_name() -> str:
    """This host's own name."""
    return os.uname().nodename


def _number(environ: Mapping[str, str], name: str, default: int | None, low: int, high: int, meaning: str) -> int:
    text = environ.get(name, "").strip()
    if not text and default is not None:
        return default
    # torchrun also takes a range of hosts (2:4); here all have to be there from the start.
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        given = f"{name} cannot be {text!r}." if text else f"{name} is not set."
        raise UsageError(given, f"It is {meaning}: {low} to {high}.")
    return int(text)


def _source_address(target: str) -> str | None:
    """The address that this host would send from; connecting a datagram socket sends nothing."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _address_of_way_out(master: str, target: str) -> str:
    out = _source_address(ELSEWHERE)
    if out is not None and not ipaddress.ip_address(out).is_loopback:
        return out
    reachable = {name: _ipv4_of(name) for name in interfaces() if name != LOOPBACK_INTERFACE}
    addresses = [address for address in reachable.values() if address is not None]
    if len(addresses) == 1:
        return addresses[0]
    raise UsageError(
        f"MASTER_ADDR={master} is {target} on this host, which the other hosts cannot reach.",
        f"Its own addresses are {', '.join(addresses)}." if addresses else "It has no other address.",
        "Give the one that all hosts can reach.",
    )


def _ipv4_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _interface_with_ipv6(address: str) -> str | None:
    wanted = ipaddress.ip_address(address).packed.hex()
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((line.split()[5] for line in lines if line.startswith(wanted)), None)


def _on_route(target: str) -> str | None:
    """The interface of the most special route to an IPv4 address."""
    try:
        rows = [line.split() for line in Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]]
        (wanted,) = struct.unpack("<I", socket.inet_aton(target))
    except (OSError, struct.error):
        return None
    masks = {row[0]: int(row[7], 16) for row in rows if wanted & int(row[7], 16) == int(row[1], 16)}
    return max(masks, key=lambda name: masks[name].bit_count(), default=None)
