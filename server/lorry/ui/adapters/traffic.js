// Requests and tokens by adapter, from the server's metrics: since its start, and in the last
// minutes as far as this page has seen them.

import { signal } from "../html.js";
import { text } from "../server.js";
import { info } from "../session.js";
import { parsed } from "../live/exposition.js";

const AGAIN = 10_000; // ms
const WINDOW = 300_000; // ms

const COLUMNS = {
  lorry_adapter_requests_total: "requests",
  lorry_adapter_prompt_tokens_total: "tokens",
  lorry_adapter_generated_tokens_total: "tokens",
};

/** By name: `{ requests, tokens, recentRequests, recentTokens }`; null if it is not known. */
export const traffic = signal(null);

// Without the histograms, which are most of it.
const NAMES = new URLSearchParams(Object.keys(COLUMNS).map((name) => ["name[]", name]));

let readings = []; // the oldest first, each { at, totals }
let last = "";

/** Returns sums by adapter over its versions. */
function totalsOf(series) {
  const totals = new Map();
  for (const [name, column] of Object.entries(COLUMNS)) {
    for (const { labels, value } of series.get(name) ?? []) {
      const one = totals.get(labels.adapter) ?? { requests: 0, tokens: 0 };
      one[column] += value;
      totals.set(labels.adapter, one);
    }
  }
  return totals;
}

/** Keeps it fresh until the returned function is called. */
export function followTraffic() {
  // A key with a list of adapters may not read what names all of them.
  if (info.value?.caller.adapters) return () => {};
  let timer = null;
  let ended = false;
  const again = async () => {
    if (document.visibilityState === "visible") await read();
    if (!ended) timer = setTimeout(again, AGAIN);
  };
  again();
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

async function read() {
  let answer;
  try {
    answer = await text(`/metrics?${NAMES}`);
  } catch {
    return; // The columns stay as they are.
  }
  const now = Date.now();
  const totals = totalsOf(parsed(answer));
  readings = [...readings.filter((one) => now - one.at < WINDOW), { at: now, totals }];
  const oldest = readings[0].totals;
  const found = new Map();
  for (const [name, { requests, tokens }] of totals) {
    const before = oldest.get(name) ?? { requests: 0, tokens: 0 };
    found.set(name, {
      requests,
      tokens,
      // A server that was started again counts from zero.
      recentRequests: Math.max(0, requests - before.requests),
      recentTokens: Math.max(0, tokens - before.tokens),
    });
  }
  const drawn = JSON.stringify([...found]);
  if (drawn === last) return;
  last = drawn;
  traffic.value = found;
}
