#!/usr/bin/env python3
"""Submits one broadcast job over HTTP, the way any Python service can. Copy this file; it needs
nothing but Python 3.8.

    python3 http_producer.py --client-msg-no promo-7 --text Hello --count 1000
    FANWISE_TOKEN=... python3 http_producer.py --url https://fanwise.example.com \\
        --client-msg-no promo-8 --text Hello --file users.txt

What makes a job safe to submit:

- client_msg_no is the key of the job. Submit again with the same key and message, after a crash or
  when in doubt, and nobody gets it twice. Take it from your own data, never a new random one for
  each try.
- Only 200 and 202 mean "accepted". After 429, 5xx, or no answer at all, the same request is sent
  again: after the seconds of Retry-After, or else after a pause that doubles.
- Any other status is a refusal. Repeating it does not help; its text says what to change.

Exit code 0: the job is on disk. Anything else: not known to be accepted; run it again.
"""

import argparse
import base64
import json
import os
import random
import sys
import time
import urllib.error
import urllib.request

TRIES = 8
PATIENCE_SECONDS = 120
PAUSE_SECONDS_MAX = 30


class Refused(Exception):
    """The server says no, and would say so again."""


def main():
    args = arguments()
    recipients = read_recipients(args)
    job = {"v": 1, "client_msg_no": args.client_msg_no, "message": {"type": "text", "text": args.text}}
    if args.target:
        job["target"] = args.target
    headers = {
        # The job goes in a header and its list in the body, so the list may have any length.
        "Content-Type": "application/x-ndjson",
        "Fanwise-Job-Spec": base64.b64encode(encode(job)).decode(),
    }
    token = os.environ.get("FANWISE_TOKEN")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if args.traceparent:
        headers["traceparent"] = args.traceparent
    body = b"".join(encode(recipient) + b"\n" for recipient in recipients)
    request = urllib.request.Request(args.url.rstrip("/") + "/v1/jobs", body, headers)
    answer = submit(request)
    print(f"accepted: {answer['recipients']} recipients, job {answer['job']}")


def submit(request):
    """Sends the request until the job is accepted or refused."""
    for attempt in range(1, TRIES + 1):
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            why, after = reason(error), error.headers.get("Retry-After", "")
            if error.code != 429 and error.code < 500:
                raise Refused(why) from None
        except OSError as error:  # no connection, or none that lasted
            why, after = repr(error), ""
        if attempt == TRIES:
            raise TimeoutError(f"{TRIES} tries; the last one: {why}")
        time.sleep(pause(attempt, after))


def pause(attempt, after):
    if after.isdigit():
        return int(after)
    return min(0.5 * 2**attempt, PAUSE_SECONDS_MAX) * random.uniform(0.5, 1)


def reason(error):
    """The text of an RFC 9457 problem document, or the status."""
    try:
        return f"{error.code} {json.load(error)['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"


def encode(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def read_recipients(args):
    if args.file is None:
        return [f"u{number}" for number in range(args.count)]
    with open(args.file, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def arguments():
    parser = argparse.ArgumentParser(description="Submit one broadcast job.")
    parser.add_argument("--url", default="http://127.0.0.1:9700", help="the gateway")
    parser.add_argument("--client-msg-no", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--target", help="where to send, instead of the app's target")
    audience = parser.add_mutually_exclusive_group(required=True)
    audience.add_argument("--file", help="recipients, one a line")
    audience.add_argument("--count", type=int, help="recipients u0 to u<COUNT-1>")
    parser.add_argument(
        "--traceparent",
        default=os.environ.get("TRACEPARENT"),
        help="W3C trace context that goes with every send",
    )
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"not accepted: {error}")
    except (OSError, ValueError) as error:
        sys.exit(f"not known to be accepted: {error}")
