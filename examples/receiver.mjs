#!/usr/bin/env node
// Receives the calls of a Fanwise webhook target, the way any Node.js service can. Copy this file; it
// needs Node.js 18.3 or newer and nothing else.
//
//     node receiver.mjs --port 8080 --secret whsec_bXkgc2VjcmV0
//
// What makes a receiver right:
//
// - It verifies the signature before it believes anything: HMAC-SHA-256 over the id, the time and the
//   bytes of the body, as Standard Webhooks describes it. A time more than five minutes away is
//   refused.
// - It remembers each webhook-id for as long as a call may be repeated, and answers a repeat like the
//   first call without delivering again. That is what `idempotent = true` promises to Fanwise. Keep
//   the ids in your database, in the transaction that delivers.
// - It answers 2xx only when the message is safe. 4xx gives the recipients up, 429 and 503 ask
//   Fanwise to come again, and {"failed": [...]} in a 200 names those of a packed call that cannot be
//   reached.

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import { parseArgs } from "node:util";

const TOLERANCE_SECONDS = 300;

// The key of a secret: base64 after whsec_, or the text itself.
function keyOf(secret) {
  return secret.startsWith("whsec_")
    ? Buffer.from(secret.slice("whsec_".length), "base64")
    : Buffer.from(secret);
}

// Whether the request is from the holder of the key, and of now.
function isGenuine(key, headers, body, nowSeconds) {
  const timestamp = headers["webhook-timestamp"] ?? "";
  if (!/^\d+$/.test(timestamp) || Math.abs(nowSeconds - Number(timestamp)) > TOLERANCE_SECONDS) {
    return false;
  }
  const hmac = createHmac("sha256", key);
  hmac.update(`${headers["webhook-id"]}.${timestamp}.`).update(body);
  const expected = Buffer.from(`v1,${hmac.digest("base64")}`);
  // Several signatures while a secret is exchanged.
  return (headers["webhook-signature"] ?? "").split(" ").some((given) => {
    const bytes = Buffer.from(given);
    return bytes.length === expected.length && timingSafeEqual(bytes, expected);
  });
}

// Hands the message to each recipient, and reports those without an account.
function deliver(call) {
  const failed = [];
  for (const recipient of call.recipients ?? [call.recipient]) {
    if (recipient.startsWith("gone")) {
      failed.push({ recipient, code: "gone", message: "no such user" });
    } else {
      console.log(`deliver ${recipient}: ${call.message.text}`);
    }
  }
  return failed.length > 0 && call.recipient !== undefined
    ? { status: 410, body: failed[0] }
    : { status: 200, body: { failed } };
}

function main() {
  const { values } = parseArgs({
    options: { port: { type: "string", default: "8080" }, secret: { type: "string" } },
  });
  if (!values.secret) throw new Error("--secret is missing");
  const key = keyOf(values.secret);
  const answers = new Map(); // by webhook-id
  const server = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    let answer = { status: 401, body: { error: "wrong signature" } };
    if (isGenuine(key, request.headers, body, Date.now() / 1000)) {
      const id = request.headers["webhook-id"];
      if (!answers.has(id)) answers.set(id, deliver(JSON.parse(body)));
      answer = answers.get(id);
    }
    response.writeHead(answer.status, { "content-type": "application/json" });
    response.end(JSON.stringify(answer.body));
  });
  server.listen(Number(values.port), "127.0.0.1", () => {
    console.log(`listening on 127.0.0.1:${server.address().port}`);
  });
}

main();
