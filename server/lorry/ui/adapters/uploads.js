// Uploads: what was dropped or chosen and waits for a name, what is on its way, and what was refused.

import { signal } from "../html.js";
import { ask, upload } from "../server.js";
import { byName, pathOf, refresh, show } from "./records.js";

/** `{ id, name, description, parts | source, state, share, error, controller }`, the newest first. */
export const uploads = signal([]);

/** What was dropped without an adapter in it, or "". */
export const misplaced = signal("");

let ids = 0;

export function add(adapters, problem) {
  misplaced.value = problem ?? "";
  const made = adapters.map((adapter) => ({
    id: (ids += 1),
    description: "",
    state: "waiting",
    share: 0,
    error: null,
    ...adapter,
  }));
  uploads.value = [...made, ...uploads.value];
}

export function set(id, changes) {
  uploads.value = uploads.value.map((one) => (one.id === id ? { ...one, ...changes } : one));
}

export function discard(id) {
  uploads.value = uploads.value.filter((one) => one.id !== id);
}

/** Returns a refusal of a name that is plain before anything is sent, or "". */
export function nameProblem(one) {
  if (!one.name.trim()) return "Give it a name.";
  const twin = uploads.value.find((other) => other.id !== one.id && other.name === one.name);
  return twin && twin.state !== "refused" && twin.state !== "done" ? "Another upload has this name." : "";
}

/** Sends it. An adapter that is there gets a new version. */
export async function send(one) {
  const controller = new AbortController();
  set(one.id, { state: "sending", share: 0, error: null, controller });
  const replace = byName.value.has(one.name);
  try {
    const record = await (one.parts ? sendFiles(one, replace, controller) : sendSource(one, replace));
    set(one.id, { state: "done", record });
    show(record);
  } catch (error) {
    const now = uploads.value.find(({ id }) => id === one.id);
    if (error.name === "AbortError" || now?.state === "cancelling") discard(one.id);
    else set(one.id, { state: "refused", error });
    refresh();
  }
}

function sendFiles(one, replace, controller) {
  const form = new FormData();
  form.append("name", one.name);
  if (one.description) form.append("description", one.description);
  if (replace) form.append("replace", "true");
  for (const [field, file] of one.parts) form.append(field, file, file.name);
  const onProgress = (share) => set(one.id, { share, state: share < 1 ? "sending" : "verifying" });
  return upload("POST", "/adapters", form, { onProgress, signal: controller.signal });
}

async function sendSource(one, replace) {
  const body = { name: one.name, source: one.source };
  if (one.description) body.description = one.description;
  if (replace) body.replace = true;
  let over = false;
  const asked = ask("POST", "/adapters", { body }).finally(() => (over = true));
  // The answer comes when it is verified; meanwhile the server tells how far it is.
  while (!over) {
    await Promise.race([asked.catch(() => {}), new Promise((resolve) => setTimeout(resolve, 500))]);
    if (over) break;
    const { fetch } = await ask("GET", pathOf(one.name)).catch(() => ({}));
    if (!fetch || over) continue;
    const share = fetch.total ? fetch.bytes / fetch.total : null;
    const now = uploads.value.find(({ id }) => id === one.id);
    if (now?.state !== "cancelling") set(one.id, { state: fetch.state, share });
  }
  return asked;
}

/** Stops one that is on its way. An adapter that was there stays as it is. */
export async function stop(one) {
  if (one.parts) {
    one.controller.abort();
    return;
  }
  set(one.id, { state: "cancelling" });
  // If it cannot be cancelled any more, its end is near, and is shown.
  await ask("DELETE", `${pathOf(one.name)}?fetch=true`).catch(() => set(one.id, { state: "verifying" }));
}
