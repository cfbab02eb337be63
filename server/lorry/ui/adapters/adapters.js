// The page of adapters: the table, or one adapter.

import { html, useEffect } from "../html.js";
import { place } from "../place.js";
import { may, returned } from "../session.js";
import { Detail } from "./detail.js";
import { follow, records, refresh, watchProblems } from "./records.js";
import { Removals } from "./removals.js";
import { Table } from "./table.js";
import { followTraffic } from "./traffic.js";
import { UploadPanel } from "./upload_panel.js";

export function Adapters() {
  const name = place.value.rest[0];
  useEffect(follow, []);
  useEffect(followTraffic, []);
  useEffect(() => {
    if (records.value) refresh();
  }, [returned.value]);
  return html`
    ${name ? html`<${Detail} key=${name} name=${name} />` : html`<${All} />`}
    <${Removals} />
  `;
}

function All() {
  const problems = Object.entries(watchProblems.value);
  return html`
    <div class="adapters-page">
      <h1>Adapters</h1>
      ${may("upload") && html`<${UploadPanel} />`}
      ${problems.length > 0 &&
      html`
        <section class="card">
          <h2>In the watched folder, but no adapters</h2>
          <dl class="facts">
            ${problems.map(([folder, why]) => html`<dt>${folder}</dt><dd>${why}</dd>`)}
          </dl>
        </section>
      `}
      <${Table} />
    </div>
  `;
}
