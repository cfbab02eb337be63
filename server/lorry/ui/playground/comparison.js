// What is compared: the prompt or chat, the columns, the settings. All of it stands in the address.
//
// An address comes from anywhere, so what it says is taken only as far as it makes sense.

import { computed, signal } from "../html.js";

export const MOST_COLUMNS = 4;
export const EXAMPLE = "How do I cook rice?";
export const SETTINGS = {
  temperature: { title: "Temperature", low: 0, high: 100, step: 0.1, usual: 0.7 },
  top_p: { title: "Top p", low: 0, high: 1, step: 0.05, usual: 1 },
  top_k: { title: "Top k (0: all)", low: 0, high: 1e6, step: 1, usual: 0 },
  repetition_penalty: { title: "Repetition penalty", low: 0.05, high: 100, step: 0.05, usual: 1 },
  max_tokens: { title: "Most tokens", low: 1, high: 1e7, step: 1, usual: 256 },
};
const USUAL = Object.fromEntries(Object.entries(SETTINGS).map(([name, { usual }]) => [name, usual]));

let made = 0;

/** "chat" or "prompt". */
export const mode = signal("chat");
/** The prompt, or in a chat the message that was not sent yet. */
export const prompt = signal(EXAMPLE);
export const system = signal("");
/** The user's messages of a chat; each column has its own answers to them. */
export const turns = signal([]);
/** Columns, 1 to 4. */
export const columns = signal([newColumn()]);
export const settings = signal(USUAL);
/** A whole number as text. Empty: each run draws one for all columns. */
export const seed = signal("");
/** A JSON schema as text, or nothing. */
export const schema = signal("");
/** Whether tokens are coloured by their log-probability. */
export const colours = signal(false);
/** Whether words that the first column's answer does not have are marked. */
export const differences = signal(false);

/**
 * A column: `parts` are adapters, summed, each `{ name, scale }` with scale null for the adapter's
 * own; none is the base. `answers` are `Answer`s, one for each turn.
 */
export function newColumn(parts = []) {
  made += 1;
  return { id: made, parts: signal(parts), answers: signal([]), stop: signal(null) };
}

/** What is wrong with the schema, or nothing. */
export const mistake = computed(() => {
  if (!schema.value.trim()) return "";
  try {
    const found = JSON.parse(schema.value);
    if (typeof found === "object" && found && !Array.isArray(found)) return "";
    return "A schema is a JSON object, as {\"type\": \"object\"}.";
  } catch (error) {
    return `This is not JSON: ${error.message}.`;
  }
});

/** The state as text for an address. */
export const encoded = computed(() => {
  const changed = Object.entries(settings.value).filter(([name, value]) => value !== USUAL[name]);
  const state = {
    m: mode.value === "chat" ? undefined : mode.value,
    p: prompt.value || undefined,
    y: system.value || undefined,
    t: turns.value.length ? turns.value : undefined,
    c: columns.value.map(({ parts }) =>
      parts.value.map(({ name, scale }) => (scale === null ? [name] : [name, scale])),
    ),
    s: changed.length ? Object.fromEntries(changed) : undefined,
    e: seed.value || undefined,
    j: schema.value || undefined,
    l: colours.value || undefined,
    d: differences.value || undefined,
  };
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  const letters = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
});

/** Takes over the state of an address. Returns whether it was one. Nothing runs by it. */
export function restore(text) {
  let state;
  try {
    const letters = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    state = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return false;
  }
  if (typeof state !== "object" || !state) return false;
  mode.value = state.m === "prompt" ? "prompt" : "chat";
  prompt.value = string(state.p);
  system.value = string(state.y);
  turns.value = list(state.t).map(string).filter(Boolean);
  const found = list(state.c).slice(0, MOST_COLUMNS).map((parts) => newColumn(partsOf(parts)));
  columns.value = found.length ? found : [newColumn()];
  settings.value = Object.fromEntries(
    Object.keys(USUAL).map((name) => [name, number(state.s?.[name], SETTINGS[name])]),
  );
  seed.value = /^\d{1,15}$/.test(string(state.e)) ? state.e : "";
  schema.value = string(state.j);
  colours.value = state.l === true;
  differences.value = state.d === true;
  return true;
}

function partsOf(found) {
  return list(found)
    .slice(0, 8)
    .filter((part) => Array.isArray(part) && typeof part[0] === "string" && part[0])
    .map(([name, scale]) => ({ name, scale: Number.isFinite(scale) ? scale : null }));
}

function string(value) {
  return typeof value === "string" ? value : "";
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function number(value, { low, high, usual }) {
  return Number.isFinite(value) && value >= low && value <= high ? value : usual;
}
