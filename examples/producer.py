#!/usr/bin/env python3
"""Publishes one broadcast job, the way any Python service can. Copy this file; it needs pika 1.x
(pip install pika) and nothing of Fanwise.

    python3 producer.py --client-msg-no promo-7 --text Hello --count 1000
    python3 producer.py --client-msg-no promo-8 --text Hello --file users.txt

What makes a job safe to publish:

- client_msg_no is the key of the job. Publish again with the same key and message, after a crash or
  when in doubt, and nobody gets it twice. Take it from your own data, never a new random one for
  each try.
- The message is persistent and mandatory, on a channel with publisher confirms. pika then raises
  UnroutableError when no queue took the message and NackError when the broker refused it.
- A list longer than 100,000 recipients or 4 MiB travels as parts of one job.

Exit code 0: the broker has the whole job on disk. Anything else: not known to be accepted; run it
again.
"""

import argparse
import json
import os
import signal
import sys

import pika
import pika.exceptions

PART_RECIPIENTS_MAX = 100_000
PART_BYTES_MAX = 4 * 1024 * 1024
PATIENCE_SECONDS = 30


def main():
    args = arguments()
    recipients = read_recipients(args)
    job = {
        "v": 1,
        "client_msg_no": args.client_msg_no,
        "message": {"type": "text", "text": args.text},
        "audience": {"users": []},
    }
    if args.target:
        job["target"] = args.target

    parameters = pika.URLParameters(args.url)
    parameters.socket_timeout = PATIENCE_SECONDS
    parameters.blocked_connection_timeout = PATIENCE_SECONDS
    # basic_publish waits for its confirm without an end; the alarm ends it. It works in the main
    # thread only: in a service with threads, close the connection from a timer instead.
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_SECONDS)
    connection = pika.BlockingConnection(parameters)
    channel = connection.channel()
    channel.confirm_delivery()
    messages = 0
    for body in bodies(job, recipients):
        messages += 1
        signal.alarm(PATIENCE_SECONDS)
        publish(channel, args, f"{args.client_msg_no}/{messages}", body)
    signal.alarm(0)
    print(f"accepted: {len(recipients)} recipients in {messages} message(s)")
    connection.close()


def publish(channel, args, message_id, body):
    """Publishes one message and waits until the broker has it on disk."""
    properties = pika.BasicProperties(
        delivery_mode=2,  # persistent
        content_type="application/json",
        message_id=message_id,
        headers={"traceparent": args.traceparent} if args.traceparent else {},
    )
    channel.basic_publish(args.exchange, args.routing_key, body, properties, mandatory=True)


def bodies(job, recipients):
    """The job as one message, or as parts. The same list gives the same parts, so that publishing
    it again stays harmless."""
    envelope = len(encode(job)) + 64  # the rest of the job, and its "part"
    parts, size = [[]], envelope
    for recipient in recipients:
        length = len(encode(recipient)) + 1
        if len(parts[-1]) == PART_RECIPIENTS_MAX or size + length > PART_BYTES_MAX:
            parts.append([])
            size = envelope
        parts[-1].append(recipient)
        size += length
    for number, users in enumerate(parts, 1):
        part = {"part": {"number": number, "of": len(parts)}} if len(parts) > 1 else {}
        yield encode({**job, "audience": {"users": users}, **part})


def encode(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def read_recipients(args):
    if args.file is None:
        return [f"u{number}" for number in range(args.count)]
    with open(args.file, encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def arguments():
    parser = argparse.ArgumentParser(description="Publish one broadcast job.")
    parser.add_argument("--url", default="amqp://guest:guest@127.0.0.1:5672/%2f")
    parser.add_argument("--exchange", default="fanwise.jobs")
    parser.add_argument("--routing-key", default="normal", help="priority: high, normal or bulk")
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


def give_up(*_):
    raise TimeoutError("the broker did not answer in time")


if __name__ == "__main__":
    try:
        main()
    except pika.exceptions.UnroutableError:
        sys.exit("not accepted: returned, no queue is bound to that exchange with that key")
    except pika.exceptions.NackError:
        sys.exit("not accepted: the broker refused, a queue is full or its leader is away")
    except (pika.exceptions.AMQPError, OSError) as error:
        sys.exit(f"not known to be accepted: {error!r}")
