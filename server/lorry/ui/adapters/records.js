// The adapters' records. While the tab is visible they are read again every few seconds, so that a
// change by somebody else is seen here.

import { computed, signal } from "../html.js";
import { Refused, ask, text } from "../server.js";

const AGAIN = 3000; // ms

/** Every adapter that the key sees, or null before the first answer. */
export const records = signal(null);

/** Problems of the watched folder, by name. */
export const watchProblems = signal({});

/** Why the list could not be read, or null. */
export const unread = signal(null);

export const byName = computed(() => new Map((records.value ?? []).map((one) => [one.name, one])));

let last = "";
let readers = 0;
let timer = null;
let changes = 0;

/** Reads the list now. Nothing is drawn anew if nothing has changed. */
export async function refresh() {
  const before = changes;
  try {
    const answer = await text("/adapters");
    unread.value = null;
    // An answer that was under way while something was changed here is of the past.
    if (before !== changes || answer === last) return;
    last = answer;
    const { adapters, watch_problems } = JSON.parse(answer);
    records.value = adapters;
    watchProblems.value = watch_problems ?? {};
  } catch (error) {
    // The frame says that the server is away.
    if (error instanceof Refused) unread.value = error;
  }
}

/** Keeps the list fresh until the returned function is called. */
export function follow() {
  readers += 1;
  if (readers === 1) again();
  return () => {
    readers -= 1;
    if (readers === 0) clearTimeout(timer);
  };
}

async function again() {
  clearTimeout(timer);
  if (document.visibilityState === "visible") await refresh();
  clearTimeout(timer);
  if (readers) timer = setTimeout(again, AGAIN);
}

document.addEventListener("visibilitychange", () => {
  if (readers && document.visibilityState === "visible") again();
});

/** The path of an adapter. Its name may have slashes. */
export function pathOf(name) {
  return `/adapters/${name.split("/").map(encodeURIComponent).join("/")}`;
}

/** Sends changes of an adapter or alias, and shows the record that comes back. */
export async function change(name, body) {
  show(await ask("PATCH", pathOf(name), { body }));
}

/** Removes an adapter, an alias or one version. */
export async function remove(name, version) {
  await ask("DELETE", pathOf(name) + (version === undefined ? "" : `?version=${version}`));
  changes += 1;
  last = "";
  if (version === undefined && records.value) {
    records.value = records.value.filter((one) => one.name !== name);
  }
  await refresh();
}

/** Shows a record that an answer had. */
export function show(record) {
  changes += 1;
  last = "";
  const others = (records.value ?? []).filter((one) => one.name !== record.name);
  records.value = [...others, record].sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** "broken", "loading", "enabled" or "disabled". */
export function stateOf(record) {
  if (record.fetch) return "loading";
  if (record.broken) return "broken";
  return record.enabled ? "enabled" : "disabled";
}
