#!/usr/bin/env python3
"""Receives the calls of a Fanwise webhook target, the way any Python service can. Copy this file; it
needs Python 3.9 or newer and nothing else.

    python3 receiver.py --port 8080 --secret whsec_bXkgc2VjcmV0

What makes a receiver right:

- It verifies the signature before it believes anything: HMAC-SHA-256 over the id, the time and the
  bytes of the body, as Standard Webhooks describes it. A time more than five minutes away is refused.
- It remembers each webhook-id for as long as a call may be repeated, and answers a repeat like the
  first call without delivering again. That is what `idempotent = true` promises to Fanwise. Keep the
  ids in your database, in the transaction that delivers.
- It answers 2xx only when the message is safe. 4xx gives the recipients up, 429 and 503 ask Fanwise
  to come again, and {"failed": [...]} in a 200 names those of a packed call that cannot be reached.
"""

import argparse
import base64
import hashlib
import hmac
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

TOLERANCE_SECONDS = 300


def key_of(secret):
    """The key of a secret: base64 after whsec_, or the text itself."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"))
    return secret.encode()


def is_genuine(key, headers, body, now):
    """Whether the request is from the holder of the key, and of now."""
    identity, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    digest = hmac.new(key, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = "v1," + base64.b64encode(digest).decode()
    # Several signatures while a secret is exchanged.
    given = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(expected.encode(), it.encode()) for it in given)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key = b""
    lock = Lock()
    answers = {}  # by webhook-id

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if not is_genuine(self.key, self.headers, body, time.time()):
            return self.answer(401, {"error": "wrong signature"})
        with self.lock:
            identity = self.headers["webhook-id"]
            if identity not in self.answers:
                self.answers[identity] = deliver(json.loads(body))
            status, answer = self.answers[identity]
        self.answer(status, answer)

    def answer(self, status, answer):
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    # Python lets five connections wait, and drops the others for seconds. Fanwise opens up to
    # `calls_in_flight` (256) at once.
    request_queue_size = 1024


def deliver(call):
    """Hands the message to each recipient, and reports those without an account."""
    failed = []
    for recipient in call.get("recipients") or [call["recipient"]]:
        if recipient.startswith("gone"):
            failed.append({"recipient": recipient, "code": "gone", "message": "no such user"})
        else:
            print(f"deliver {recipient}: {call['message'].get('text')}", flush=True)
    if failed and "recipient" in call:
        return 410, failed[0]
    return 200, {"failed": failed}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--secret", required=True)
    args = parser.parse_args()
    Receiver.key = key_of(args.secret)
    server = Server(("127.0.0.1", args.port), Receiver)
    print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
