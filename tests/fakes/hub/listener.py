"""The sockets and threads of the fake Hub, where failures break connections."""

from __future__ import annotations

import math
import socket
import struct
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.fakes.hub.failures import CUT, MESSAGES
from tests.fakes.hub.messages import Answer, json_answer

if TYPE_CHECKING:
    from tests.fakes.hub.server import HubServer


class Listener(ThreadingHTTPServer):
    """Listens from the start, and ends with every connection closed and every thread joined."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        # Without the shutdown of the base class, which would send a FIN ahead of the RST of "refused".
        self.connections.discard(request)
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.hub.errors.append(traceback.format_exc())

    def stop(self) -> None:
        self.shutdown()
        self.thread.join()
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for the next request
            except OSError:
                continue  # closed by the other side, or by its own thread meanwhile
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Listener

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True  # the client left

    def _serve(self) -> None:
        hub = self.server.hub
        request, failure = hub.arrived(self.command, self.path, self.headers)
        how = failure.how if failure else ""
        if callable(how):
            how(request)
            how = ""
        self.close_connection = self.close_connection or how in CUT
        if how == "refused":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        body = self._body(half=how == "cut during")
        if how == "stall" and failure:
            hub.closing.wait(failure.seconds)
        if body is None or how in ("cut before", "stall") or (how == "cut during" and body):
            self.close_connection = True
            return
        if how == "ignore ranges":
            del request.headers["Range"]
        request.body = body
        if isinstance(how, int) and failure:
            answer = json_answer({"error": MESSAGES.get(how, "no luck")}, how, failure.headers)
        elif how == "proxy":
            answer = Answer(502, b"<html><h1>502 Bad Gateway</h1></html>", {"Content-Type": "text/html"})
        else:
            answer = hub.answer(request)
        if how != "cut after":
            self._send(answer, request.number, str(how), failure.seconds if failure else 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self, half: bool) -> bytes | None:
        """The body of the request, or None if the client left before its end."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().partition(b";")[0] or b"0", 16):
                data += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    return data
            return data if self.rfile.readline() else None
        length = int(self.headers.get("Content-Length", 0))
        if half and length:
            return self.rfile.read(max(length // 2, 1))
        data = self.rfile.read(length)
        return data if len(data) == length else None

    def _send(self, answer: Answer, number: int, how: str, seconds: float) -> None:
        body = answer.body
        if how == "short range":
            body = body[: len(body) // 2]
        self.send_response(answer.status)
        self.send_header("X-Request-Id", f"Root=1-{number:08x}")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if how in ("short", "cut during"):
            body = body[: len(body) // 2]
        pieces = 10 if how == "slow" else 1
        size = max(math.ceil(len(body) / pieces), 1)
        for start in range(0, len(body), size):
            if how == "slow":
                self.server.hub.closing.wait(seconds / pieces)
            self.wfile.write(body[start : start + size])
