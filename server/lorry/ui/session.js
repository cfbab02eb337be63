// What the page knows of its server: whether it answers, whether it wants a key, and its `/info`.

import { computed, signal } from "./html.js";
import { ask, listen, Refused } from "./server.js";
import { key, setKey } from "./key.js";

const AGAIN = 2000; // ms between two tries while the server is away

/** `/info`, or null before its first answer. */
export const info = signal(null);

/** "starting", "ready", "key" (it wants one), "not ready" or "away". */
export const state = signal("starting");

/** Why the server is not ready, or why it refused the key. */
export const reason = signal("");

/** Increases each time that the server has come back, so that lists are read again. */
export const returned = signal(0);

/** Returns whether the key may do something: `may("admin")`. */
export function may(scope) {
  const scopes = info.value?.caller.scopes ?? [];
  return scopes.includes("admin") || scopes.includes(scope);
}

/** Whether the server asks for keys at all. */
export const keyed = computed(() => Boolean(info.value?.caller.key));

let timer = null;

export async function connect() {
  clearTimeout(timer);
  try {
    info.value = await ask("GET", "/info");
    const health = await ask("GET", "/health").catch(health503);
    reason.value = health.reason ?? "";
    if (health.status === "ready") arrived();
    else wait("not ready");
  } catch (error) {
    if (error instanceof Refused && error.status === 401) {
      reason.value = key.value ? error.message : "";
      state.value = "key";
    } else if (error instanceof Refused && error.status < 500) {
      // The key is good for something else than reading `/info`.
      reason.value = error.message;
      state.value = "key";
    } else {
      wait("away");
    }
  }
}

export function useKey(text, remember) {
  setKey(text, remember);
  state.value = "starting";
  return connect();
}

export function forgetKey() {
  info.value = null;
  return useKey("", false);
}

function health503(error) {
  if (error instanceof Refused && error.status === 503) {
    return { status: "not ready", reason: error.message };
  }
  throw error;
}

function arrived() {
  if (state.value !== "ready") returned.value += 1;
  state.value = "ready";
}

function wait(what) {
  state.value = what;
  timer = setTimeout(connect, AGAIN);
}

listen(({ status }) => {
  if (status === 401 && state.value === "ready") connect();
  if (status === 0 && state.value === "ready") wait("away");
});
