#!/usr/bin/env node
// Publishes one broadcast job, the way any Node.js service can. Copy this file; it needs Node.js 18.3
// or newer, amqplib (npm install amqplib), and nothing of Fanwise.
//
//     node producer.mjs --client-msg-no promo-7 --text Hello --count 1000
//     node producer.mjs --client-msg-no promo-8 --text Hello --file users.txt
//
// What makes a job safe to publish:
//
// - client_msg_no is the key of the job. Publish again with the same key and message, after a crash
//   or when in doubt, and nobody gets it twice. Take it from your own data, never a new random one
//   for each try.
// - The message is persistent and mandatory, on a channel with publisher confirms. A message that no
//   queue took is returned AND confirmed: the "return" event comes first, then the confirm, so by
//   the time of the confirm the return is known. Only a confirm without a return means "accepted".
// - A list longer than 100,000 recipients or 4 MiB travels as parts of one job.
//
// Exit code 0: the broker has the whole job on disk. Anything else: not known to be accepted; run it
// again.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import amqp from "amqplib";

const PART_RECIPIENTS_MAX = 100_000;
const PART_BYTES_MAX = 4 * 1024 * 1024;
const PATIENCE_MS = 30_000;

async function main() {
  const args = readArguments();
  const recipients = readRecipients(args);
  const job = {
    v: 1,
    client_msg_no: args["client-msg-no"],
    message: { type: "text", text: args.text },
    audience: { users: [] },
    ...(args.target && { target: args.target }),
  };

  const connection = await amqp.connect(args.url, { timeout: PATIENCE_MS });
  const channel = await connection.createConfirmChannel();
  // Without a listener an error of the broker, such as "no such exchange", would end the process;
  // the confirms that wait fail with it.
  let broken;
  connection.on("error", (error) => (broken ??= error));
  channel.on("error", (error) => (broken ??= error));
  const returned = new Set();
  channel.on("return", (message) => returned.add(message.properties.messageId));

  let messages = 0;
  for (const body of bodies(job, recipients)) {
    messages += 1;
    await inTime(publish(channel, args, `${job.client_msg_no}/${messages}`, body, returned)).catch(
      (error) => {
        throw broken ?? error;
      },
    );
  }
  console.log(`accepted: ${recipients.length} recipients in ${messages} message(s)`);
  await connection.close();
}

// Publishes one message and waits until the broker has it on disk.
function publish(channel, args, messageId, body, returned) {
  const options = {
    persistent: true,
    mandatory: true,
    contentType: "application/json",
    messageId,
    headers: args.traceparent ? { traceparent: args.traceparent } : {},
  };
  return new Promise((resolve, reject) => {
    channel.publish(args.exchange, args["routing-key"], body, options, (error) => {
      if (error) {
        reject(error);
      } else if (returned.has(messageId)) {
        reject(new Error("returned, no queue is bound to that exchange with that key"));
      } else {
        resolve();
      }
    });
  });
}

function inTime(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    const error = new Error("the broker did not confirm in time");
    timer = setTimeout(reject, PATIENCE_MS, error);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// The job as one message, or as parts. The same list gives the same parts, so that publishing it
// again stays harmless.
function bodies(job, recipients) {
  const envelope = encode(job).length + 64; // the rest of the job, and its "part"
  const parts = [[]];
  let size = envelope;
  for (const recipient of recipients) {
    const length = encode(recipient).length + 1;
    if (parts.at(-1).length === PART_RECIPIENTS_MAX || size + length > PART_BYTES_MAX) {
      parts.push([]);
      size = envelope;
    }
    parts.at(-1).push(recipient);
    size += length;
  }
  return parts.map((users, index) => {
    const part = parts.length > 1 ? { part: { number: index + 1, of: parts.length } } : {};
    return encode({ ...job, audience: { users }, ...part });
  });
}

function encode(value) {
  return Buffer.from(JSON.stringify(value));
}

function readRecipients(args) {
  if (args.file === undefined) {
    return Array.from({ length: Number(args.count) }, (_, number) => `u${number}`);
  }
  const lines = readFileSync(args.file, "utf8").split("\n");
  return lines.map((line) => line.trim()).filter(Boolean);
}

function readArguments() {
  const text = (value) => ({ type: "string", ...(value && { default: value }) });
  const { values } = parseArgs({
    options: {
      url: text("amqp://guest:guest@127.0.0.1:5672/%2f"),
      exchange: text("fanwise.jobs"),
      "routing-key": text("normal"), // priority: high, normal or bulk
      "client-msg-no": text(),
      text: text(),
      target: text(), // where to send, instead of the app's target
      file: text(), // recipients, one a line
      count: text(), // recipients u0 to u<count-1>
      traceparent: text(process.env.TRACEPARENT), // W3C trace context that goes with every send
    },
  });
  for (const name of ["client-msg-no", "text"]) {
    if (!values[name]) throw new Error(`--${name} is missing`);
  }
  if ((values.file === undefined) === (values.count === undefined)) {
    throw new Error("give --file or --count");
  }
  return values;
}

main().catch((error) => {
  console.error(`not known to be accepted: ${error.message}`);
  // Not only exitCode: a connection that is still open would keep the process alive.
  process.exit(1);
});
