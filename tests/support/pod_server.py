"""An HTTP server for pods of tests: answers with its name, slowly where asked, and ends without losing a request.

`GET /?seconds=S` answers after S seconds; `/unready` and `/ready` switch what `/readyz` says; `/exit?code=N` ends it.
"""

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ready, draining = threading.Event(), threading.Event()
ready.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path:
            case "/exit":
                os._exit(int(query["code"]))
            case "/unready":
                ready.clear()
            case "/ready":
                ready.set()
        time.sleep(float(query.get("seconds", 0)))
        body = os.environ.get("HOSTNAME", "").encode()
        self.send_response(503 if url.path == "/readyz" and not ready.is_set() else 200)
        self.send_header("Content-Length", str(len(body)))
        if draining.is_set():
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 100


def main() -> None:
    server = Server((os.environ["POD_IP"], int(os.environ.get("PORT", "8000"))), Handler)

    def end(*_: object) -> None:
        draining.set()
        threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, end)
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    server.serve_forever()
    server.server_close()
    sys.stdout.write("ended\n")


if __name__ == "__main__":
    main()
