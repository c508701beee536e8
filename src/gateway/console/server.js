// Talks to the HTTP interface of the server that these pages came from.
//
// The token is kept in sessionStorage: it ends with the tab, other sites cannot read it, and the
// browser sends it nowhere by itself, so no other page can use it. An HttpOnly cookie would need a
// protection against forged requests, and a place on every gateway that remembers who is signed in.

import { beginAgain, hear } from './history.js';

const TOKEN = 'fanwise.token';

let token = sessionStorage.getItem(TOKEN);

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `status ${status}`);
    this.status = status;
    this.title = problem.title || '';
    this.kind = problem.kind;
    this.job = problem.job;
    this.problems = problem.problems || [];
  }
}

// --- who is told ----------------------------------------------------------------------------------

const listeners = { signedOut: new Set(), reach: new Set(), job: new Set() };

/** Calls `listener` at each event of this kind; returns what ends that. */
export function on(kind, listener) {
  listeners[kind].add(listener);
  return () => listeners[kind].delete(listener);
}

const tell = (kind, value) => listeners[kind].forEach((listener) => listener(value));

let reachable = true;

export const isReachable = () => reachable;

function reached(now) {
  if (now !== reachable) {
    reachable = now;
    tell('reach', now);
  }
}

// --- signing in -----------------------------------------------------------------------------------

export function useToken(text) {
  token = text || null;
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

export const hasToken = () => token !== null;

export function signOut() {
  useToken(null);
  tell('signedOut', null);
}

const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

// --- requests -------------------------------------------------------------------------------------

/** A path with its query; fields without a value are left out. */
export function address(path, query = {}) {
  const fields = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== '');
  const text = new URLSearchParams(fields).toString();
  return text ? `${path}?${text}` : path;
}

async function ask(method, path, { headers = {}, body, signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method, body, signal, cache: 'no-store', credentials: 'omit',
      headers: { 'Fanwise-Client': 'console', ...authorization(), ...headers },
    });
  } catch (error) {
    if (error.name !== 'AbortError') reached(false);
    throw error;
  }
  reached(true);
  if (response.status === 401) tell('signedOut', null);
  if (!response.ok) throw new Refused(response.status, await response.json().catch(() => ({})));
  return response;
}

async function json(method, path, value) {
  const sent = value === undefined ? {} : { body: JSON.stringify(value), headers: { 'Content-Type': 'application/json' } };
  const response = await ask(method, path, sent);
  return response.status === 204 ? null : response.json();
}

export const get = (path, query) => json('GET', address(path, query));
export const post = (path, value) => json('POST', path, value);
export const put = (path, value) => json('PUT', path, value);
export const remove = (path) => json('DELETE', path);

/** Calls `each` with the JSON value of each line, until it returns false. */
export async function lines(path, query, each) {
  const ended = new AbortController();
  const headers = { Accept: 'application/x-ndjson' };
  const response = await ask('GET', address(path, query), { headers, signal: ended.signal });
  for await (const line of split(response.body, '\n')) {
    if (line && each(JSON.parse(line)) === false) {
      ended.abort();
      return;
    }
  }
}

async function* split(body, separator) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const parts = (rest + value).split(separator);
    rest = parts.pop();
    yield* parts;
  }
  if (rest) yield rest;
}

/** Sends a form, and calls `progress` with the part of it that has left. */
export function upload(path, form, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open('POST', path);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => {
      reached(false);
      reject(new TypeError('the server cannot be reached'));
    };
    request.onload = () => {
      reached(true);
      let value = {};
      try { value = JSON.parse(request.responseText); } catch { /* an answer of a proxy */ }
      if (request.status === 401) tell('signedOut', null);
      if (request.status < 300) resolve(value);
      else reject(new Refused(request.status, value));
    };
    request.send(form);
  });
}

// --- streams --------------------------------------------------------------------------------------

const QUIET_MAX = 25_000;
const AGAIN = [500, 1000, 2000, 4000, 8000];

/**
 * Follows server-sent events, and opens the stream again when it is lost. A page that nobody sees
 * has no stream: browsers allow few connections to one server. Returns what ends it.
 */
function follow(path, opened, each) {
  let ended = false;
  let current = null;
  let failures = 0;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const seen = () => new Promise((resolve) => {
    const check = () => {
      if (!document.hidden || ended) {
        document.removeEventListener('visibilitychange', check);
        resolve();
      }
    };
    document.addEventListener('visibilitychange', check);
    check();
  });
  const hide = () => document.hidden && current?.abort();
  document.addEventListener('visibilitychange', hide);

  async function once() {
    current = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => current.abort(), QUIET_MAX);
    };
    heard();
    try {
      const response = await ask('GET', path, { signal: current.signal, headers: { Accept: 'text/event-stream' } });
      if (response.status === 204) return true;
      failures = 0;
      opened();
      for await (const block of split(response.body, '\n\n')) {
        heard();
        const data = block.split('\n').filter((line) => line.startsWith('data:')).map((line) => line.slice(5));
        if (data.length) each(JSON.parse(data.join('\n')));
      }
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  (async () => {
    while (!ended) {
      await seen();
      if (ended) return;
      try {
        if (await once()) return;
      } catch (error) {
        if (error instanceof Refused && error.status !== 503) return;
        failures += 1;
      }
      if (!ended && !document.hidden) await pause(AGAIN[Math.min(failures, AGAIN.length - 1)]);
    }
  })();
  return () => {
    ended = true;
    current?.abort();
    document.removeEventListener('visibilitychange', hide);
  };
}

function heardOf(event) {
  hear(event);
  tell('job', event);
}

/** Follows all jobs. `opened` is called each time the stream begins. */
export const followJobs = (opened) => follow('v1/events', () => {
  beginAgain();
  opened();
}, heardOf);

/** Follows one job until it is completed. */
export const followJob = (job) => follow(`v1/jobs/${encodeURIComponent(job)}/events`, () => {}, heardOf);
