"""What a peer hears when a node dies: ``silence.py listen`` on one node, ``silence.py NODE`` on the other."""

import socket
import sys

PORT = 5002
LISTEN_S = 3.0  # a goodbye would be here within milliseconds

if sys.argv[1] == "listen":
    with socket.create_server(("0.0.0.0", PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        connection.recv(1)
else:
    with socket.create_connection((sys.argv[1], PORT), timeout=LISTEN_S) as connection:
        print("connected", flush=True)
        try:
            print(f"heard {connection.recv(1)!r}", flush=True)
        except TimeoutError:
            print("silence", flush=True)
