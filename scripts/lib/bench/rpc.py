"""A JSON-RPC client for a unix socket. Pollux and SPDK speak the same dialect."""

import json
import socket
from pathlib import Path
from typing import Any

from .errors import BenchError


class RpcError(BenchError):
    """The target refused."""


class Rpc:
    """One connection; calls run one after the other."""

    def __init__(self, path: Path, timeout: float = 60.0) -> None:
        self.path = path
        self.number = 0
        self.rest = ""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> "Rpc":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()

    def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Calls a method and waits for its result."""
        self.number += 1
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": self.number, "method": method}
        if params:
            request["params"] = params
        try:
            self.socket.sendall(json.dumps(request).encode())
            answer = self._answer()
        except OSError as error:
            raise RpcError(f"{self.path}: {method}: {error}") from error
        if "error" in answer:
            raise RpcError(f"{self.path}: {method}: {json.dumps(answer['error'])}")
        return answer["result"]

    def _answer(self) -> Any:
        decoder = json.JSONDecoder()
        while True:
            text = self.rest.lstrip()
            if text:
                try:
                    value, end = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    pass  # more of it is still to come
                else:
                    self.rest = text[end:]
                    return value
            data = self.socket.recv(1 << 20)
            if not data:
                raise OSError("the target hung up")
            self.rest += data.decode()
