// Running: each column's stream, all sent at once so that the server puts them into one batch.

import { batch, computed, signal } from "../html.js";
import { Refused, stream } from "../server.js";
import { Answer } from "./answer.js";
import { columns, mistake, mode, prompt, seed, turns } from "./comparison.js";
import { request } from "./request.js";

/** The seed of the last run, as a number. */
export const drawn = signal(null);

/** Whether any column is being answered. */
export const running = computed(() => columns.value.some(({ stop }) => stop.value));

/** Whether there is something that `run` would send. */
export const ready = computed(() => {
  if (prompt.value.trim()) return true;
  if (mode.value === "prompt") return false;
  return columns.value.some(({ answers }) => answers.value.length < turns.value.length);
});

/** Sends what the user wrote to all columns. Returns when all have ended, or nothing was sent. */
export async function run() {
  if (running.value || !ready.value || mistake.value) return;
  batch(() => {
    if (mode.value === "chat" && prompt.value.trim()) {
      turns.value = [...turns.value, prompt.value];
      prompt.value = "";
    }
    if (mode.value === "prompt") for (const { answers } of columns.value) answers.value = [];
  });
  await send(columns.value);
}

/** Answers the last turn again, in some columns. */
export async function regenerate(chosen = columns.value) {
  if (chosen.some(({ stop }) => stop.value) || mistake.value) return;
  const length = mode.value === "prompt" ? 0 : turns.value.length - 1;
  batch(() => {
    for (const { answers } of chosen) answers.value = answers.value.slice(0, Math.max(0, length));
  });
  await send(chosen);
}

export function stop() {
  for (const { stop } of columns.value) stop.value?.abort();
}

/** Forgets all answers and, of a chat, all messages. */
export function clear() {
  stop();
  batch(() => {
    turns.value = [];
    for (const { answers } of columns.value) answers.value = [];
  });
}

async function send(chosen) {
  drawn.value = seed.value === "" ? Math.floor(Math.random() * 2 ** 32) : Number(seed.value);
  await Promise.all(chosen.map((column) => answer(column, drawn.value)));
}

async function answer(column, number) {
  const control = new AbortController();
  column.stop.value = control;
  try {
    if (mode.value === "prompt") await write(column, 0, [], number, control.signal);
    else await converse(column, number, control.signal);
  } finally {
    column.stop.value = null;
  }
}

/** Answers every turn that has no answer yet: several after an address was opened. */
async function converse(column, number, signal) {
  const messages = [];
  for (const [at, content] of turns.value.entries()) {
    messages.push({ role: "user", content });
    let found = column.answers.value[at];
    if (!found?.usable) {
      found = await write(column, at, [...messages], number, signal);
      if (found.state.value !== "done") return;
    }
    messages.push({ role: "assistant", content: found.text });
  }
}

async function write(column, at, messages, number, signal) {
  const { path, body } = request(column, messages, number);
  const found = new Answer(path, body);
  column.answers.value = [...column.answers.value.slice(0, at), found];
  const options = { include_usage: true, continuous_usage_stats: true };
  try {
    for await (const event of stream(path, { ...body, stream: true, stream_options: options }, signal)) {
      if (event.error) throw new Refused(200, event);
      found.take(event);
    }
    if (found.finish) found.end("done");
    else found.end("failed", "The answer broke off: its stream ended early.");
  } catch (error) {
    if (error.name === "AbortError") found.end("stopped");
    else found.end("failed", said(error, found));
  }
  return found;
}

function said(error, { count }) {
  if (error instanceof Refused) {
    const wait = error.retryAfter;
    return wait ? `${error.message} Try again in ${wait} ${wait === 1 ? "second" : "seconds"}.` : error.message;
  }
  if (!(error.name === "Error" || error instanceof Error)) return String(error);
  return count ? `${error.message} The answer broke off here.` : error.message;
}
