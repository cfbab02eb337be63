// The table of adapters that were used in the last minute.

import { html } from "../html.js";
import { address } from "../place.js";
import { buckets, quantile, sum } from "./exposition.js";
import { before } from "./readings.js";
import { count, seconds } from "./units.js";

const WINDOW = 60; // seconds
const MOST = 50;

/** `all`: readings. `long`: those with the adapters' histograms. `base`: the base's name. */
export function Busy({ all, long, base }) {
  const rows = busy(all, long).slice(0, MOST);
  return html`
    <div class="card busy">
      <h2 id="busy">Adapters of the last minute</h2>
      <div class="scroll" tabindex="0" role="region" aria-labelledby="busy">
        <table>
          <thead>
            <tr>
              <th scope="col">Adapter</th>
              <th scope="col" class="number">Tokens/s</th>
              <th scope="col" class="number">Requests/min</th>
              <th scope="col" class="number">First token, median / 95 %</th>
              <th scope="col" class="number">Each token, median / 95 %</th>
            </tr>
          </thead>
          <tbody>
            ${rows.map(
              (row) => html`
                <tr key=${row.name}>
                  <th scope="row">
                    ${row.name === base ? base : html`<a href=${address("adapters", [row.name])}>${row.name}</a>`}
                  </th>
                  <td class="number">${count(row.tokens)}</td>
                  <td class="number">${count(row.requests)}</td>
                  <td class="number">${both(row.first)}</td>
                  <td class="number">${both(row.each)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
        ${rows.length === 0 && html`<p class="faint">None was used.</p>`}
      </div>
    </div>
  `;
}

function both([half, most]) {
  return half === null ? "–" : `${seconds(half)} / ${seconds(most)}`;
}

function busy(all, long) {
  const now = all.at(-1);
  if (!now) return [];
  const then = before(all, WINDOW);
  const span = Math.max(now.at - then.at, 1e-3);
  const names = new Set(
    ["lorry_adapter_generated_tokens_total", "lorry_adapter_requests_total"].flatMap((name) =>
      (now.series.get(name) ?? []).map(({ labels }) => labels.adapter),
    ),
  );
  const grown = (name, adapter) =>
    (sum(now.series, name, { adapter }) ?? 0) - (sum(then.series, name, { adapter }) ?? 0);
  return [...names]
    .map((name) => ({
      name,
      tokens: Math.max(0, grown("lorry_adapter_generated_tokens_total", name)) / span,
      requests: (Math.max(0, grown("lorry_adapter_requests_total", name)) / span) * 60,
    }))
    .filter(({ tokens, requests }) => tokens > 0 || requests > 0)
    .sort((a, b) => b.tokens - a.tokens)
    .slice(0, MOST)
    .map((row) => ({
      ...row,
      first: quantiles(long, "lorry_adapter_time_to_first_token_seconds", row.name),
      each: quantiles(long, "lorry_adapter_time_per_token_seconds", row.name),
    }));
}

function quantiles(long, name, adapter) {
  const now = long.at(-1);
  if (!now) return [null, null];
  const then = long.length > 1 ? buckets(before(long, WINDOW).series, name, { adapter }) : [];
  const after = buckets(now.series, name, { adapter });
  return [quantile(0.5, after, then), quantile(0.95, after, then)];
}
