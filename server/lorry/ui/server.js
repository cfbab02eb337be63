// The HTTP client: JSON, streams of events and uploads, with the key that the user typed in.
//
// Every failure is one of two errors. `Refused` is the server's answer: its status, its code, its
// message and, of an upload, all problems. `Unreachable` means that no answer came.

import { key } from "./key.js";

export class Refused extends Error {
  constructor(status, body, retryAfter) {
    const error = typeof body?.error === "object" ? body.error : {};
    const said = typeof body?.error === "string" ? body.error : error.message;
    super(said || `The server answered ${status}.`);
    this.status = status;
    this.code = error.code ?? body?.error_type ?? null;
    this.problems = error.problems ?? body?.problems ?? [];
    this.retryAfter = Number(retryAfter) || null;
  }
}

export class Unreachable extends Error {
  constructor() {
    super("The server does not answer.");
  }
}

// Functions that are told what came of each request: `{ status }`, or `{ status: 0 }` without an answer.
const listeners = new Set();

export function listen(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell(status) {
  for (const listener of listeners) listener({ status });
}

async function answer(method, path, { body, signal, headers = {} } = {}) {
  const sent = { ...headers };
  if (key.value) sent.authorization = `Bearer ${key.value}`;
  if (body !== undefined) sent["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path.replace(/^\//, ""), {
      method,
      signal,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell(0);
    throw new Unreachable();
  }
  tell(response.status);
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  return new Refused(response.status, body, response.headers.get("retry-after"));
}

/** Returns the JSON of an answer, or null if it has no body. `path` is the server's, as `/info`. */
export async function ask(method, path, given) {
  const response = await answer(method, path, given);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** Returns an answer's text. */
export async function text(path, given) {
  return (await answer("GET", path, given)).text();
}

/** Returns an answer's bytes, which the browser may keep on the disk. */
export async function blob(path, given) {
  return (await answer("GET", path, given)).blob();
}

/** Yields the `data` of each event, parsed, until the stream ends or `signal` is aborted. */
export async function* stream(path, body, signal) {
  const response = await answer("POST", path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5))
          .join("\n")
          .trim();
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell(0);
    throw new Unreachable();
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Sends a form, with its progress from 0 to 1: `fetch` does not tell it. */
export function upload(method, path, form, { onProgress = () => {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, path.replace(/^\//, ""));
    if (key.value) request.setRequestHeader("authorization", `Bearer ${key.value}`);
    request.upload.onprogress = (event) => onProgress(event.loaded / event.total);
    request.onload = () => {
      tell(request.status);
      const body = parsed(request.responseText);
      if (request.status < 400) resolve(body);
      else reject(new Refused(request.status, body, request.getResponseHeader("retry-after")));
    };
    request.onerror = () => {
      tell(0);
      reject(new Unreachable());
    };
    request.onabort = () => reject(new DOMException("The upload was stopped.", "AbortError"));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
