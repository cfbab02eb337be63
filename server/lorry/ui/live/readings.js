// Readings of `/metrics` while the page is seen: a few names often, what is long now and then.
//
// The server keeps no history, so the charts begin with the page. A hidden tab reads nothing.

import { signal } from "../html.js";
import { text } from "../server.js";
import { parsed, sum } from "./exposition.js";

const EVERY = 2000; // ms
const SELDOM = 5; // each so many readings come with the adapters' histograms, which are long
const KEPT = 150; // readings: five minutes

const OFTEN = [
  "lorry_adapter_evictions_total",
  "lorry_adapter_generated_tokens_total",
  "lorry_adapter_loads_total",
  "lorry_adapter_requests_total",
  "lorry_engine_failed_steps_total",
  "lorry_host_cache_bytes",
  "lorry_host_cache_capacity_bytes",
  "lorry_max_num_seqs",
  "lorry_slots",
  "lorry_slots_used",
  "process_resident_memory_bytes",
  "process_start_time_seconds",
  "vllm:generation_tokens_total",
  "vllm:inter_token_latency_seconds_bucket",
  "vllm:kv_cache_usage_perc",
  "vllm:num_requests_running",
  "vllm:num_requests_waiting",
  "vllm:prefix_cache_hits_total",
  "vllm:prefix_cache_queries_total",
  "vllm:prompt_tokens_total",
  "vllm:time_to_first_token_seconds_bucket",
];
const LONG = ["lorry_adapter_time_to_first_token_seconds_bucket", "lorry_adapter_time_per_token_seconds_bucket"];

/** All readings, oldest first: `{ at, series }`, `at` in seconds. */
export const readings = signal([]);

/** The readings that have the adapters' histograms, oldest first. */
export const longReadings = signal([]);

/** Why nothing can be read, or null. */
export const refused = signal(null);

/** Reads until the returned function is called. */
export function watch() {
  let [timer, count, stopped] = [null, 0, false];

  async function read() {
    const long = count++ % SELDOM === 0;
    try {
      const names = long ? [...OFTEN, ...LONG] : OFTEN;
      const query = new URLSearchParams(names.map((name) => ["name[]", name]));
      const series = parsed(await text(`/metrics?${query}`));
      if (!stopped) keep({ at: Date.now() / 1000, series }, long);
    } catch (error) {
      // The frame tells of a server that is away.
      refused.value = error.status === 403 ? error.message : null;
    }
    if (!stopped && !document.hidden) timer = setTimeout(read, EVERY);
  }

  function seen() {
    clearTimeout(timer);
    if (!document.hidden) read();
  }

  document.addEventListener("visibilitychange", seen);
  seen();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}

function keep(reading, long) {
  refused.value = null;
  const last = readings.value.at(-1);
  // Counters of another process say nothing beside those of this one.
  const started = "process_start_time_seconds";
  const restarted = last && sum(last.series, started) !== sum(reading.series, started);
  readings.value = [...(restarted ? [] : readings.value), reading].slice(-KEPT);
  if (restarted) longReadings.value = [];
  if (long) longReadings.value = [...longReadings.value, reading].slice(-KEPT / SELDOM);
}

/** Returns a counter's growth a second between each two readings: `[null, …]`, one for each. */
export function rates(all, name, labels) {
  return all.map((reading, index) => {
    const before = all[index - 1];
    if (!before) return null;
    const grown = (sum(reading.series, name, labels) ?? 0) - (sum(before.series, name, labels) ?? 0);
    return Math.max(0, grown) / Math.max(reading.at - before.at, 1e-3);
  });
}

/** Returns a gauge's values. */
export function values(all, name) {
  return all.map(({ series }) => sum(series, name));
}

/** Returns the reading of about `seconds` before the last one, or the oldest. */
export function before(all, seconds) {
  const since = (all.at(-1)?.at ?? 0) - seconds;
  return all.findLast(({ at }) => at <= since) ?? all[0];
}
