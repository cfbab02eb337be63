// The live page: what the server does now, from its metrics.

import { html, useEffect } from "../html.js";
import { info } from "../session.js";
import { Busy } from "./busy.js";
import { Chart } from "./chart.js";
import { buckets, quantile, sum } from "./exposition.js";
import { before, longReadings, rates, readings, refused, values, watch } from "./readings.js";
import { bytes, count, seconds, share } from "./units.js";

const WINDOW = 30; // seconds that a percentile is of

export function Live() {
  useEffect(watch, []);
  const all = readings.value;
  if (refused.value) {
    return html`<h1>Live</h1>
      <p class="problem" role="alert">${refused.value}</p>`;
  }
  return html`
    <h1>Live</h1>
    <${Tiles} all=${all} />
    <${Charts} all=${all} />
    <${Busy} all=${all} long=${longReadings.value} base=${info.value.model_id} />
  `;
}

function Tiles({ all }) {
  const now = all.at(-1)?.series ?? new Map();
  const of = (name, most) => {
    const value = sum(now, name);
    return value === null ? "–" : `${count(value)}${most ? ` of ${count(sum(now, most) ?? 0)}` : ""}`;
  };
  const cache = hits(all);
  const memory = sum(now, "process_resident_memory_bytes");
  const tiles = [
    ["Running", of("vllm:num_requests_running", "lorry_max_num_seqs")],
    ["Waiting", of("vllm:num_requests_waiting")],
    ["Adapter slots", of("lorry_slots_used", "lorry_slots")],
    ["Prompts from the cache", cache === null ? "–" : share(cache)],
    ["Loads / evictions", `${of("lorry_adapter_loads_total")} / ${of("lorry_adapter_evictions_total")}`],
    ["Failed steps", of("lorry_engine_failed_steps_total")],
    ["Memory of the server", memory === null ? "–" : bytes(memory)],
  ];
  return html`
    <dl class="tiles">
      ${tiles.map(
        ([title, value]) => html`
          <div class="card">
            <dt>${title}</dt>
            <dd>${value}</dd>
          </div>
        `,
      )}
    </dl>
  `;
}

/** Returns the share of prompt tokens that the prefix cache had in the last minutes. */
function hits(all) {
  const [first, last] = [all[0], all.at(-1)];
  if (!first || first === last) return null;
  const grown = (name) => (sum(last.series, name) ?? 0) - (sum(first.series, name) ?? 0);
  const asked = grown("vllm:prefix_cache_queries_total");
  return asked > 0 ? grown("vllm:prefix_cache_hits_total") / asked : null;
}

function Charts({ all }) {
  const times = all.map(({ at }) => at);
  const use = (used, most) =>
    all.map(({ series }) => {
      const whole = sum(series, most);
      return whole ? (sum(series, used) ?? 0) / whole : null;
    });
  const charts = [
    {
      title: "Tokens a second",
      shown: count,
      lines: [
        { label: "generated", values: rates(all, "vllm:generation_tokens_total") },
        { label: "of prompts", values: rates(all, "vllm:prompt_tokens_total") },
      ],
    },
    {
      title: "Requests",
      shown: count,
      lines: [
        { label: "running", values: values(all, "vllm:num_requests_running") },
        { label: "waiting", values: values(all, "vllm:num_requests_waiting") },
      ],
    },
    {
      title: "Time to the first token",
      note: "Of the half minute before.",
      shown: seconds,
      lines: percentiles(all, "vllm:time_to_first_token_seconds"),
    },
    {
      title: "Time between two tokens",
      note: "Of the half minute before.",
      shown: seconds,
      lines: percentiles(all, "vllm:inter_token_latency_seconds"),
    },
    {
      title: "In use",
      shown: share,
      most: 1,
      lines: [
        { label: "KV cache", values: values(all, "vllm:kv_cache_usage_perc") },
        { label: "adapter slots", values: use("lorry_slots_used", "lorry_slots") },
        { label: "host cache", values: use("lorry_host_cache_bytes", "lorry_host_cache_capacity_bytes") },
      ],
    },
    {
      title: "Adapters a second",
      shown: count,
      lines: [
        { label: "loaded", values: rates(all, "lorry_adapter_loads_total") },
        { label: "evicted", values: rates(all, "lorry_adapter_evictions_total") },
      ],
    },
  ];
  return html`
    <div class="charts">
      ${charts.map((chart) => html`<${Chart} key=${chart.title} ...${chart} times=${times} />`)}
    </div>
  `;
}

function percentiles(all, name) {
  const at = (q) =>
    all.map((reading, index) => {
      const then = before(all.slice(0, index + 1), WINDOW);
      if (then === reading) return null;
      return quantile(q, buckets(reading.series, name), buckets(then.series, name));
    });
  return [
    { label: "median", values: at(0.5) },
    { label: "95 %", values: at(0.95) },
  ];
}
