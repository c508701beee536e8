#!/usr/bin/env node
// Submits one broadcast job over HTTP, the way any Node.js service can. Copy this file; it needs
// nothing but Node.js 18.3.
//
//     node http_producer.mjs --client-msg-no promo-7 --text Hello --count 1000
//     FANWISE_TOKEN=... node http_producer.mjs --url https://fanwise.example.com \
//         --client-msg-no promo-8 --text Hello --file users.txt
//
// What makes a job safe to submit:
//
// - client_msg_no is the key of the job. Submit again with the same key and message, after a crash
//   or when in doubt, and nobody gets it twice. Take it from your own data, never a new random one
//   for each try.
// - Only 200 and 202 mean "accepted". After 429, 5xx, or no answer at all, the same request is sent
//   again: after the seconds of Retry-After, or else after a pause that doubles.
// - Any other status is a refusal. Repeating it does not help; its text says what to change.
//
// Exit code 0: the job is on disk. Anything else: not known to be accepted; run it again.

import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";

const TRIES = 8;
const PATIENCE_MS = 120_000;
const PAUSE_MS_MAX = 30_000;

async function main() {
  const args = readArguments();
  const recipients = readRecipients(args);
  const job = {
    v: 1,
    client_msg_no: args["client-msg-no"],
    message: { type: "text", text: args.text },
    ...(args.target && { target: args.target }),
  };
  const token = process.env.FANWISE_TOKEN;
  const request = {
    method: "POST",
    headers: {
      // The job goes in a header and its list in the body, so the list may have any length.
      "content-type": "application/x-ndjson",
      "fanwise-job-spec": Buffer.from(JSON.stringify(job)).toString("base64"),
      ...(token && { authorization: `Bearer ${token}` }),
      ...(args.traceparent && { traceparent: args.traceparent }),
    },
    body: recipients.map((recipient) => JSON.stringify(recipient) + "\n").join(""),
  };
  const answer = await submit(args.url.replace(/\/+$/, "") + "/v1/jobs", request);
  console.log(`accepted: ${answer.recipients} recipients, job ${answer.job}`);
}

// Sends the request until the job is accepted or refused.
async function submit(url, request) {
  for (let attempt = 1; ; attempt += 1) {
    const { answer, why, after } = await once(url, request);
    if (answer) return answer;
    if (attempt === TRIES) throw new Error(`${TRIES} tries; the last one: ${why}`);
    await sleep(pause(attempt, after));
  }
}

// The answer, or why there is none yet. Throws if the job is refused.
async function once(url, request) {
  let reply;
  let text;
  try {
    reply = await fetch(url, { ...request, signal: AbortSignal.timeout(PATIENCE_MS) });
    text = await reply.text();
  } catch (error) {
    return { why: error.cause?.message ?? error.message };
  }
  if (reply.ok) return { answer: JSON.parse(text) };
  const why = `${reply.status} ${detail(text) ?? reply.statusText}`;
  if (reply.status !== 429 && reply.status < 500) throw new Refused(why);
  return { why, after: reply.headers.get("retry-after") };
}

class Refused extends Error {}

function pause(attempt, after) {
  if (/^\d+$/.test(after ?? "")) return Number(after) * 1000;
  return Math.min(500 * 2 ** attempt, PAUSE_MS_MAX) * (0.5 + Math.random() / 2);
}

// The text of an RFC 9457 problem document.
function detail(text) {
  try {
    return JSON.parse(text).detail;
  } catch {
    return undefined;
  }
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
      url: text("http://127.0.0.1:9700"), // the gateway
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
  const known = error instanceof Refused ? "not accepted" : "not known to be accepted";
  console.error(`${known}: ${error.message}`);
  process.exitCode = 1;
});
