"""An inference server of the tests' own: the KServe v2 protocol over HTTP, with its binary extension, on onnxruntime.

It stands in for Triton, which can't be had here. `python v2_server.py MODEL PORT-FILE [CERTIFICATE KEY]` serves one
`.onnx` file as the model `m`, and writes its port. A request to `/fail` sets what happens to the next requests.
"""

from __future__ import annotations

import json
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

TYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BOOL": np.bool_}
NAMES = {"tensor(float)": "FP32", "tensor(int64)": "INT64", "tensor(string)": "BYTES", "tensor(bool)": "BOOL"}
LENGTH = "Inference-Header-Content-Length"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    session: ort.InferenceSession
    failures: list[str] = []  # noqa: RUF012
    binary = True
    token = ""
    seen: dict[str, Any] = {"connections": 0, "requests": 0, "binary": 0}  # noqa: RUF012

    def setup(self) -> None:
        super().setup()
        self.seen["connections"] += 1

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, head: Any, raw: bytes | None = None) -> None:
        data = json.dumps(head).encode()
        self.send_response(status)
        if raw is not None:
            self.send_header(LENGTH, str(len(data)))
            data += raw
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/seen":
            self.answer(200, self.seen)
        elif not self.fails():
            if self.path == "/v2":
                self.answer(200, {"name": "tests", "extensions": ["binary_tensor_data"] if self.binary else []})
            elif self.path == "/v2/models/m":
                sides = {"inputs": self.session.get_inputs(), "outputs": self.session.get_outputs()}
                described = {
                    side: [
                        {
                            "name": n.name,
                            "datatype": NAMES[n.type],
                            "shape": [s if isinstance(s, int) else -1 for s in n.shape],
                        }
                        for n in nodes
                    ]
                    for side, nodes in sides.items()
                }
                self.answer(200, {"name": "m", "platform": "onnx", **described})
            else:
                self.answer(404, {"error": "no such model"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/set":
            for name, value in json.loads(body).items():
                setattr(Handler, name, value)
            self.answer(200, {})
            return
        if self.fails():
            return
        length = int(self.headers.get(LENGTH, len(body)))
        head, raw = json.loads(body[:length]), body[length:]
        self.seen["requests"] += 1
        self.seen["binary"] += length < len(body)
        feeds = {}
        for tensor in head["inputs"]:
            size = tensor.get("parameters", {}).get("binary_data_size")
            feeds[tensor["name"]] = decode(tensor, raw[:size] if size is not None else None)
            raw = raw[size or 0 :]
        names = [output["name"] for output in head["outputs"]]
        outputs, parts = [], []
        for asked, array in zip(head["outputs"], self.session.run(names, feeds), strict=True):
            kind = (
                "BYTES" if array.dtype == object else {np.dtype(t).name: k for k, t in TYPES.items()}[array.dtype.name]
            )
            tensor = {"name": asked["name"], "datatype": kind, "shape": list(array.shape)}
            if asked.get("parameters", {}).get("binary_data"):
                parts.append(encode(array))
                tensor["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                tensor["data"] = array.reshape(-1).tolist()
            outputs.append(tensor)
        self.answer(200, {"model_name": "m", "outputs": outputs}, b"".join(parts) if parts else None)

    def fails(self) -> bool:
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            self.answer(401, {"error": "who are you?"})
            return True
        if not self.failures:
            return False
        how = self.failures.pop(0)
        if how == "drop":
            self.close_connection = True
        elif how == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")
            self.close_connection = True
        elif how == "text":
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")
        elif how == "hang":
            time.sleep(60)
        elif how == "close after":
            self.close_connection = True  # without saying so: the client finds out at its next request
            return False
        else:
            status, _, text = how.partition(" ")
            self.answer(int(status), {"error": text})
        return True


def decode(tensor: dict[str, Any], raw: bytes | None) -> np.ndarray:
    if tensor["datatype"] == "BYTES":
        texts = list(tensor.get("data", []))
        while raw:
            size = int.from_bytes(raw[:4], "little")
            texts.append(raw[4 : 4 + size].decode())
            raw = raw[4 + size :]
        return np.array(texts, dtype=object).reshape(tensor["shape"])
    kind = TYPES[tensor["datatype"]]
    flat = np.array(tensor["data"], kind) if raw is None else np.frombuffer(raw, kind)
    return flat.reshape(tensor["shape"])


def encode(array: np.ndarray) -> bytes:
    if array.dtype == object:
        return b"".join(len(t.encode()).to_bytes(4, "little") + t.encode() for t in array.reshape(-1))
    return array.tobytes()


def main(model: str, port: str, certificate: str = "", key: str = "") -> None:
    Handler.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    partial = Path(port + ".partial")
    partial.write_text(str(server.server_port))
    partial.rename(port)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
