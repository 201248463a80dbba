"""Asks ports of 127.0.0.0/8 as another user, without any password; prints what each answers as JSON.

Arguments: the user's number, then ADDRESS:PORT.  The user changes after the imports, as others may not read this
interpreter.  HTTP servers answer with a status per path, gRPC servers with a code per method, others with the
first bytes that they send.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys

import grpc

PATHS = (
    "/",
    "/d1/0/AUTH_rd3",
    "/recon/devices",
    "/rd3",
    "/info",
    "/api/2.0/mlflow/experiments/search?max_results=1",
    "/metrics",
    "/api/jobs/",
    "/api/v0/nodes",
    "/nodes?view=summary",
    "/api/local_raylet_healthz",
)
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.RayletDriver/ClusterInfo",
)
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def speaks_grpc(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5) as connection:
        connection.sendall(HELLO)
        return connection.recv(9)[3:4] == b"\x04"
    return False


def by_grpc(address: str, port: int) -> dict[str, str]:
    codes = {}
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for method in METHODS:
            try:
                channel.unary_unary(method)(b"", timeout=20)
                codes[method] = "OK"
            except grpc.RpcError as error:
                codes[method] = error.code().name
    return codes


def by_http(address: str, port: int) -> dict[str, str]:
    found = {}
    for path in PATHS:
        connection = http.client.HTTPConnection(address, port, timeout=10)
        try:
            connection.request("GET", path)
            found[path] = str(connection.getresponse().status)
        except http.client.BadStatusLine:
            found[path] = "no HTTP"
        except OSError as error:
            found[path] = f"{type(error).__name__}"
        finally:
            connection.close()
    return found


# Import what the first connections would.
"127.0.0.1".encode("idna")
grpc.insecure_channel("127.0.0.1:1").close()
user = int(sys.argv[1])
os.setgroups([])
os.setgid(user)
os.setuid(user)
answers = {}
for word in sys.argv[2:]:
    host, number = word.split(":")
    answers[word] = by_grpc(host, int(number)) if speaks_grpc(host, int(number)) else by_http(host, int(number))
print(json.dumps(answers))
