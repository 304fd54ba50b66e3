# Copyright (c) 2026, the quaywall.docker authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Sends packets and says what came of them. Runs inside the client, a host, or a container's network namespace.

It is handed to ``python3 -c`` there, so it imports nothing but the standard library, and nothing of it is in an image.

    requests             one JSON object per line on stdin, one answer per line on stdout, until end of file
    storm <JSON>         connect at a steady pace until stdin ends, then print one JSON object
    udp-echo <port> <name> <PID>   answer every datagram with the name, for as long as the process lives
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import errno
import json
import os
import socket
import sys
import threading
import time
import typing as t

REQUEST = b"GET / HTTP/1.0\r\n\r\n"
MOST_SECONDS_OF_STORM = 300
UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.ENOPROTOOPT)

Answer = dict[str, t.Any]


def outcome_of(error: OSError) -> str:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return "timeout"
    if error.errno == errno.ECONNREFUSED:
        return "refused"
    if error.errno in UNREACHABLE:
        return "unreachable"
    return "error"


def who_answered(reply: bytes) -> str:
    """The name in the reply: the body of a workload's HTTP reply, or whatever another server says."""
    return reply.rpartition(b"\r\n\r\n")[2].decode("utf-8", "replace").strip()


def new_socket(kind: int, address: str, source: str | None, source_port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        # Without this an ICMPv6 "unreachable" is only remembered, and the REJECT looks like a DROP.
        sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
    if source_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if source or source_port:
        sock.bind((source or "", source_port))
    return sock


def connect(address: str, port: int, source: str | None = None, timeout: float = 0.5, source_port: int = 0) -> Answer:
    """One TCP connection: opened or not, and if so by whom."""
    start = time.monotonic()
    answer: Answer = {"outcome": "open", "who": "", "detail": ""}
    reply = b""
    sock = None
    try:
        sock = new_socket(socket.SOCK_STREAM, address, source, source_port)
        sock.settimeout(timeout)
        sock.connect((address, port))
        try:
            sock.settimeout(max(timeout, 1.0))
            sock.sendall(REQUEST)
            while data := sock.recv(4096):
                reply += data
        except OSError as error:
            answer["detail"] = f"after the connection was open: {error}"
        answer["who"] = who_answered(reply)
    except OSError as error:
        answer.update(outcome=outcome_of(error), detail=str(error))
    finally:
        if sock:
            sock.close()
    answer["seconds"] = time.monotonic() - start
    return answer


def connect_all(targets: list[Answer]) -> list[Answer]:
    """Connections at the same moment, each with the arguments of connect(); what came of them in the same order."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(lambda target: connect(**target), targets))


def datagram(address: str, port: int, source: str | None = None, timeout: float = 0.5) -> Answer:
    """One UDP datagram: answered or not, and by whom."""
    start = time.monotonic()
    answer: Answer = {"outcome": "open", "who": "", "detail": ""}
    sock = None
    try:
        sock = new_socket(socket.SOCK_DGRAM, address, source)
        sock.settimeout(timeout)
        sock.connect((address, port))
        sock.send(b"who?")
        answer["who"] = who_answered(sock.recv(4096))
    except OSError as error:
        answer.update(outcome=outcome_of(error), detail=str(error))
    finally:
        if sock:
            sock.close()
    answer["seconds"] = time.monotonic() - start
    return answer


class Listener:
    """A TCP server that answers with a name and remembers who came."""

    def __init__(self, port: int, name: str) -> None:
        self.peers: list[str] = []
        self._reply = f"HTTP/1.0 200 OK\r\n\r\n{name}".encode()
        self._sockets = []
        for family, wildcard in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((wildcard, port))
            sock.listen(128)
            self._sockets.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        while True:
            try:
                connection, peer = sock.accept()
            except OSError:
                return
            self.peers.append(peer[0])
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(2)
            connection.recv(4096)
            connection.sendall(self._reply)

    def close(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            sock.close()


def requests() -> None:
    """Answer requests until there are no more."""
    listeners: dict[int, Listener] = {}
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        answer: Answer = {}
        try:
            if do == "connect":
                answer = connect(**request)
            elif do == "connect-all":
                answer = {"answers": connect_all(**request)}
            elif do == "datagram":
                answer = datagram(**request)
            elif do == "listen":
                listeners[request["port"]] = Listener(**request)
            elif do == "peers":
                answer = {"peers": listeners[request["port"]].peers}
            elif do == "close":
                listeners.pop(request["port"]).close()
            else:
                answer = {"failed": f"unknown request {do}"}
        except OSError as error:
            answer = {"failed": str(error)}
        print(json.dumps(answer), flush=True)


async def storm(address: str, port: int, source: str | None, every: float, timeout: float, seconds: float) -> Answer:
    """Connect every few milliseconds until stdin ends."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    attempts: list[Answer] = []
    tasks: set[asyncio.Task[None]] = set()

    def wait_for_end() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(done.set)

    async def attempt(sock: socket.socket, record: Answer) -> None:
        try:
            sock.setblocking(False)
            await asyncio.wait_for(loop.sock_connect(sock, (address, port)), timeout)
            record["outcome"] = "open"
            await loop.sock_sendall(sock, REQUEST)
            reply = b""
            while data := await asyncio.wait_for(loop.sock_recv(sock, 4096), 2):
                reply += data
            record["who"] = who_answered(reply)
        except OSError as error:
            if record["outcome"] != "open":
                record["outcome"] = outcome_of(error)
        finally:
            sock.close()

    threading.Thread(target=wait_for_end, daemon=True).start()
    start = loop.time()
    turn = 0
    while not done.is_set() and loop.time() - start < min(seconds, MOST_SECONDS_OF_STORM):
        record: Answer = {"outcome": "error", "who": "", "at": time.monotonic()}
        attempts.append(record)
        try:
            task = loop.create_task(attempt(new_socket(socket.SOCK_STREAM, address, source), record))
        except OSError as error:
            record["outcome"] = outcome_of(error)
        else:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if turn == 0:
            print("started", flush=True)
        turn += 1
        await asyncio.sleep(max(0.0, start + turn * every - loop.time()))
    if tasks:
        await asyncio.wait(tasks)
    outcomes: dict[str, int] = {}
    for record in attempts:
        outcomes[record["outcome"]] = outcomes.get(record["outcome"], 0) + 1
    opened = [[record["at"], record["who"]] for record in attempts if record["outcome"] == "open"]
    return {"attempts": len(attempts), "outcomes": outcomes, "opened": opened}


def udp_echo(port: int, name: str, pid: int) -> None:
    """Answer datagrams, over IPv4 and IPv6, for as long as the process lives."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    sock.settimeout(0.5)
    while os.path.exists(f"/proc/{pid}"):
        try:
            peer = sock.recvfrom(4096)[1]
            sock.sendto(name.encode(), peer)
        except OSError:
            continue  # nobody asked, or who asked is gone


def main(arguments: list[str]) -> None:
    if arguments[0] == "storm":
        print(json.dumps(asyncio.run(storm(**json.loads(arguments[1])))), flush=True)
    elif arguments[0] == "udp-echo":
        udp_echo(int(arguments[1]), arguments[2], int(arguments[3]))
    else:
        requests()


if __name__ == "__main__":
    main(sys.argv[1:])
