"""A TCP server for relay tests: says who it is, then echoes until the other side ends its sending, then says so.

A first line `flood N` makes it send N bytes instead; `break` makes it reset the connection.
"""

import os
import socket
import socketserver
import struct


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(f"{os.environ['HOSTNAME']}\n".encode())
        first = self.rfile.readline()
        if first.startswith(b"flood"):
            left = int(first.split()[1])
            while left:
                left -= self.request.send(bytes(min(left, 65536)))
            return
        if first == b"break\n":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()
            return
        self.wfile.write(first)
        while block := self.request.recv(65536):
            self.wfile.write(block)
        self.wfile.write(b"ended\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server((os.environ["POD_IP"], 9000), Echo) as server:
        server.serve_forever()
