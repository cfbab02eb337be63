"""Keeps Ray Serve's replicas from listening on every address of their machine.

Each replica opens a port for calls of other replicas. It unpickles what comes, asks for no token,
and Serve binds it to all addresses (`ray.serve._private.replica`, `[::]:0`). The node's own address
is the only one that anybody calls it by.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica


def bind_to_the_node() -> None:
    """Bind this replica's port to the node's address, which is 127.0.0.1 in a cluster of one
    machine (`local`). Call it in the replica's constructor: Serve opens the port after it."""
    address = ray.util.get_node_ip_address()
    add = replica.add_port_to_grpc_server

    def add_here(server: Any, given: str) -> int:
        port = given.rpartition(":")[2]
        host = f"[{address}]" if ":" in address else address
        bound: int = add(server, f"{host}:{port}")
        return bound

    replica.add_port_to_grpc_server = add_here
