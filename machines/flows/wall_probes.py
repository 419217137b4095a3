"""What a sandbox lets out, tried from inside: one JSON object.

This file is one self-contained script of the standard library (Python 3.9 and newer), because its
own text is sent into a new session and run there::

    command(ask)  ->  python3 -I -B -c '<this file>' < one line of JSON
                  ->  {"nonce": "...", "sights": {"dns": ["closed", "no way to 127.0.0.1"], ...}}

Every probe says `open` (it got through, and to what), `closed` (it did not, and why not) or
`inconclusive` (it could not be tried).  What a level of trust promises is decided elsewhere.

Nothing is sent beyond this host.  The outside is the ranges that are reserved for documentation
(RFC 5737 and 3849): first a datagram socket is connected, which sends nothing and fails where
there is no route; only where it fails a connection is tried, which then must fail as well.  What
is the host's is known by canaries of whoever asks: a port and a socket that answer with a token,
the identities of folders, of a process, and of namespaces.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPEN, CLOSED, UNSURE = "open", "closed", "inconclusive"
ANSWER_BYTES_MAX = 16 * 1024
_DETAIL_CHARACTERS_MAX = 120
_SECONDS = 2.0
_OUTSIDE = (("192.0.2.1", 80), ("198.51.100.1", 443), ("203.0.113.1", 22), ("2001:db8::1", 443))
_QUERY = bytes.fromhex("747501000001000000000000") + b"\x07turtles\x07invalid\x00\x00\x01\x00\x01"
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_AF_VSOCK, _AF_PACKET = 40, 17

Sight = tuple[str, str]


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _why(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _route(address: str, port: int) -> bool:
    """Whether there is a way to an address.  Connecting a datagram socket sends nothing."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as asked:
            asked.connect((address, port))
    except OSError:
        return False
    return True


def outside(_ask: dict[str, Any]) -> Sight:
    """TCP to addresses that are nobody's."""
    for address, port in _OUTSIDE:
        if _route(address, port):
            return OPEN, f"there is a route to {address}"
        try:
            with socket.socket(_family(address), socket.SOCK_STREAM) as tried:
                tried.settimeout(_SECONDS)
                tried.connect((address, port))
            return OPEN, f"{address}:{port} answered"
        except (socket.timeout, TimeoutError):  # noqa: UP041 - two classes before Python 3.10
            return OPEN, f"a connection to {address}:{port} was let out"
        except OSError:
            continue
    return CLOSED, "no way to any of the reserved ranges"


def dns(_ask: dict[str, Any]) -> Sight:
    """Whether a resolver can be reached."""
    for server in _resolvers():
        local = server.startswith("127.") or server == "::1"
        if not local and _route(server, 53):
            return OPEN, f"there is a route to the resolver {server}"
        if local and _answers(server):
            return OPEN, f"the resolver {server} answered"
    try:  # every resolver is out of reach, so this asks files and local services only
        found = socket.getaddrinfo("turtles.invalid", 80)
    except OSError as error:
        return CLOSED, f"no resolver: {type(error).__name__}"
    return OPEN, f"a reserved name resolved to {len(found)} addresses"


def _resolvers() -> list[str]:
    try:
        text = Path("/etc/resolv.conf").read_text("utf-8", "replace")[:4096]
    except OSError:
        text = ""
    named = [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ")]
    return named[:3] or ["127.0.0.1"]


def _answers(server: str) -> bool:
    try:
        with socket.socket(_family(server), socket.SOCK_DGRAM) as asked:
            asked.settimeout(0.5)
            asked.connect((server, 53))
            asked.send(_QUERY)
            return len(asked.recv(512)) > 0
    except OSError:
        return False


def interfaces(_ask: dict[str, Any]) -> Sight:
    """Network devices that are up, but the loopback."""
    up = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            request = struct.pack("16sH14s", name.encode()[:15], 0, b"")
            flags = struct.unpack("16sH14s", fcntl.ioctl(asked, _SIOCGIFFLAGS, request))[1]
            if flags & _IFF_UP and name != "lo":
                up.append(name)
    return (OPEN, f"up: {', '.join(up)}") if up else (CLOSED, "the loopback alone")


def host_port(ask: dict[str, Any]) -> Sight:
    """TCP to the host's loopback."""
    return _canary(socket.AF_INET, ("127.0.0.1", int(ask["port"])), ask["token"])


def host_socket(ask: dict[str, Any]) -> Sight:
    """An abstract socket of the host, which no file system guards."""
    return _canary(socket.AF_UNIX, "\0" + ask["socket"], ask["token"])


def _canary(family: int, address: Any, token: str) -> Sight:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.settimeout(_SECONDS)
            tried.connect(address)
            said = tried.recv(len(token))
    except ConnectionRefusedError:
        return CLOSED, "refused"
    except OSError as error:
        silent = isinstance(error, (socket.timeout, TimeoutError))
        return (UNSURE if silent else CLOSED), _why(error)
    if said == token.encode():
        return OPEN, "the host's canary answered"
    return CLOSED, "something else answers there"


def proxy(_ask: dict[str, Any]) -> Sight:
    """TCP to the proxy of a semitrusted sandbox."""
    try:
        with socket.create_connection(_proxy_address(), _SECONDS):
            return OPEN, "it takes connections"
    except OSError as error:
        return CLOSED, _why(error)


def _proxy_address() -> tuple[str, int]:
    named = os.environ.get("http_proxy") or os.environ.get("HTTP_PROXY") or ""
    host, _, port = named.rpartition("://")[2].rstrip("/").rpartition(":")
    return (host, int(port)) if host and port.isdecimal() else ("127.0.0.1", 3128)


def proxy_outside(_ask: dict[str, Any]) -> Sight:
    """Through the proxy to the world."""
    return _asked_proxy(
        "GET http://192.0.2.1/ HTTP/1.1\r\nHost: 192.0.2.1",
        "CONNECT 198.51.100.1:443 HTTP/1.1\r\nHost: 198.51.100.1:443",
    )


def proxy_host(ask: dict[str, Any]) -> Sight:
    """Through the proxy to the host's loopback."""
    places = [f"{name}:{ask['port']}" for name in ("127.0.0.1", "localhost")]
    return _asked_proxy(*(f"GET http://{at}/ HTTP/1.1\r\nHost: {at}" for at in places))


def _asked_proxy(*requests: str) -> Sight:
    """403 to every one is what a proxy with an allow list says."""
    for request in requests:
        try:
            status = _status(request)
            if status == 429:
                time.sleep(1.5)
                status = _status(request)
        except OSError as error:
            return CLOSED, f"no proxy: {_why(error)}"
        if status in (0, 429):
            return UNSURE, f"the proxy says {status or 'nothing'}"
        if status != 403:
            return OPEN, f"{' '.join(request.split()[:2])}: {status}, expected 403"
    return CLOSED, "403"


def _status(request: str) -> int:
    with socket.create_connection(_proxy_address(), _SECONDS) as asked:
        asked.sendall(f"{request}\r\nConnection: close\r\n\r\n".encode())
        try:
            words = asked.recv(64).split()
        except OSError:
            return 0
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def raw_socket(_ask: dict[str, Any]) -> Sight:
    """Packets made by hand."""
    return _made(
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        (_AF_PACKET, socket.SOCK_RAW, 0),
    )


def vsock(_ask: dict[str, Any]) -> Sight:
    """The way to a hypervisor, which no network namespace covers."""
    return _made((_AF_VSOCK, socket.SOCK_STREAM, 0))


def _made(*kinds: tuple[int, int, int]) -> Sight:
    why = ""
    for kind in kinds:
        try:
            socket.socket(*kind).close()
        except OSError as error:
            why = _why(error)
        else:
            return OPEN, f"family {kind[0]} can be made"
    return CLOSED, why


def host_files(ask: dict[str, Any]) -> Sight:
    """Folders that are the host's own, by device and number."""
    for path, identity in sorted(ask["places"].items()):
        try:
            found = Path(path).stat()
        except OSError:
            continue
        if [found.st_dev, found.st_ino] == identity:
            return OPEN, f"{path} is the host's"
    return CLOSED, f"none of {len(ask['places'])} folders is the host's"


def host_processes(ask: dict[str, Any]) -> Sight:
    """The process that asks, by number and start; and the kernel's own threads."""
    if started_ticks("self") is None:
        return UNSURE, "there is no /proc"
    pid, started = ask["process"]
    if started_ticks(str(pid)) == started:
        return OPEN, "the asking process is seen"
    try:
        second = Path("/proc/2/comm").read_text("ascii", "replace").strip()
    except OSError:
        second = ""
    return (OPEN, "threads of the kernel are seen") if second == "kthreadd" else (CLOSED, "none")


def started_ticks(process: str) -> int | None:
    """When a process was started, in the kernel's ticks; its name may hold anything."""
    try:
        text = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def namespaces(ask: dict[str, Any]) -> Sight:
    """Namespaces that are the host's own."""
    seen = 0
    for name, identity in sorted(ask["namespaces"].items()):
        try:
            found = str(Path(f"/proc/self/ns/{name}").readlink())
        except OSError:
            continue
        seen += 1
        if found == identity:
            return OPEN, f"the {name} namespace is the host's"
    return (CLOSED, f"{seen} are others") if seen else (UNSURE, "none can be read")


PROBES: tuple[Callable[[dict[str, Any]], Sight], ...] = (
    outside, dns, interfaces, host_port, host_socket, proxy, proxy_outside, proxy_host,
    raw_socket, vsock, host_files, host_processes, namespaces,
)  # fmt: skip


def tried(ask: dict[str, Any]) -> dict[str, Any]:
    """What every probe saw.

    Args:
        ask: `nonce`, `token`, `port`, `socket`, `places`, `process`, `namespaces`: the canaries.
    """
    sights = {}
    for probe in PROBES:
        try:
            seen, detail = probe(ask)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            seen, detail = UNSURE, f"{type(error).__name__}: {error}"
        sights[probe.__name__] = [seen, _clean(detail)]
    return {"nonce": ask.get("nonce"), "sights": sights}


def _clean(text: str) -> str:
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text)[
        :_DETAIL_CHARACTERS_MAX
    ]


def source() -> str:
    """The text of this script."""
    return Path(__file__).read_text(encoding="utf-8")


def command(ask: dict[str, Any]) -> str:
    """A bash command that runs this script where it is run; it needs only `python3`."""
    return f"python3 -I -B -c {shlex.quote(source())} <<'TURTLES'\n{json.dumps(ask)}\nTURTLES"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(tried(json.loads(sys.stdin.readline()))) + "\n")
