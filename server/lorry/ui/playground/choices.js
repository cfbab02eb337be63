// The adapters that a column may have: names, versions and aliases, as the server lists them now.

import { computed, signal } from "../html.js";
import { ask } from "../server.js";

/** Adapters of `GET /adapters` that answer and are not disabled, or null before the first answer. */
export const adapters = signal(null);

/** `{ name, note, record }` of everything that a request may name. */
export const choices = computed(() => (adapters.value ?? []).flatMap(names));

const named = computed(() => new Map(choices.value.map((choice) => [choice.name, choice])));

/** Reads the list again. A server that does not answer is told of elsewhere. */
export async function refresh() {
  try {
    const found = (await ask("GET", "/adapters")).adapters;
    adapters.value = found.filter(({ enabled, broken, task_type: task }) => {
      return enabled && !broken && (!task || task === "CAUSAL_LM");
    });
  } catch {
    adapters.value ??= null;
  }
}

/** The record behind a name, a version or an alias; undefined if the list does not have it. */
export function record(name) {
  return named.value.get(name)?.record;
}

function names(one) {
  const found = [{ name: one.name, note: one.description ?? "", record: one }];
  for (const [alias, version] of Object.entries(one.aliases ?? {})) {
    const to = typeof version === "number" ? `version ${version}` : "a split";
    found.push({ name: alias, note: `alias of ${one.name}, ${to}`, record: one });
  }
  if (one.versions?.length > 1) {
    for (const { version } of one.versions.toReversed()) {
      const note = version === one.version ? "the current version" : "a version";
      found.push({ name: `${one.name}@${version}`, note, record: one });
    }
  }
  return found;
}
