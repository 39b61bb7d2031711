"""Bytes through a plain socket: ``stream.py receive`` prints the rate in Mbit/s, ``stream.py send ADDRESS BYTES``."""

import socket
import sys
import time

PORT = 5001
PIECE = 1 << 18

if sys.argv[1] == "receive":
    with socket.create_server(("0.0.0.0", PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
    connection.recv(PIECE)  # the rate counts from the first arrival, after the link's burst has gone
    begin, received = time.perf_counter(), 0
    while data := connection.recv(PIECE):
        received += len(data)
    print(received * 8 / (time.perf_counter() - begin) / 1e6, flush=True)
else:
    address, num_bytes = sys.argv[2], int(sys.argv[3])
    with socket.create_connection((address, PORT)) as connection:
        for _ in range(num_bytes // PIECE):
            connection.sendall(bytes(PIECE))
