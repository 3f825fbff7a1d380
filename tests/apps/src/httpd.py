# httpd.py - a ThreadingHTTPServer. Usage: httpd.py PORT FILE serves FILE to every GET;
# httpd.py self serves itself from client threads and prints `right`.
import http.client
import http.server
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(self.server.body or self.path.encode())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"]))[::-1])

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


def ask(port, name, right):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for i in range(20):
        connection.request("GET", f"/{name}/{i}")
        assert connection.getresponse().read() == b"/%d/%d" % (name, i)
        body = b"%d-%d;" % (name, i) * 3000
        connection.request("POST", "/", body)
        assert connection.getresponse().read() == body[::-1]
    connection.close()
    right.append(name)


if sys.argv[1] == "self":
    server = Server(("127.0.0.1", 0), Handler)
    server.body = None
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    right = []
    clients = [threading.Thread(target=ask, args=(server.server_port, n, right)) for n in range(24)]
    for t in clients:
        t.start()
    for t in clients:
        t.join(60)
    assert sorted(right) == list(range(24)), right
    server.shutdown()
    loop.join(60)
    assert not loop.is_alive()
    server.server_close()
    print("right")
else:
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    server.body = open(sys.argv[2], "rb").read()
    server.serve_forever()
