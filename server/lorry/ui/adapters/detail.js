// One adapter: its record in full, and what may be changed of it.

import { html, useEffect, useRef } from "../html.js";
import { address } from "../place.js";
import { may } from "../session.js";
import { StateBadge, Residency } from "./badges.js";
import { Download } from "./download.js";
import { bytes, moment, number, precise } from "./figures.js";
import { Inspection } from "./inspection.js";
import { Names } from "./names.js";
import { byName, records } from "./records.js";
import { leaving, removeLater } from "./removals.js";
import { Settings } from "./settings.js";
import { Versions } from "./versions.js";

export function Detail({ name }) {
  const record = byName.value.get(name);
  const title = useRef(null);
  const there = Boolean(record);
  // Whoever follows a link with the keyboard goes on from the top.
  useEffect(() => title.current?.focus(), [there]);
  const back = html`<a href=${address("adapters")}>← All adapters</a>`;
  if (!record) {
    return html`
      <div class="adapters-page">
        ${back}
        <h1 ref=${title} tabindex="-1">${name}</h1>
        <p role="status">${records.value ? "There is no such adapter." : "Reading it…"}</p>
      </div>
    `;
  }
  return html`
    <div class="adapters-page">
      ${back}
      <div class="row detail-head">
        <h1 ref=${title} tabindex="-1">${name}</h1>
        <${StateBadge} record=${record} />
        <${Residency} where=${record.residency} />
        <span class="grow"></span>
        ${may("upload") &&
        html`<${Download} name=${name} label=${name} />
        <button class="danger" disabled=${leaving(name)} onClick=${() => removeLater(name)}>Delete</button>`}
      </div>
      ${record.description && html`<p class="description-full">${record.description}</p>`}
      ${record.broken && html`<div class="refusal"><p>${record.broken}</p></div>`}
      ${record.warnings.length > 0 && html`<${Warnings} texts=${record.warnings} />`}
      <div class="panels">
        ${may("upload") && html`<${Settings} record=${record} />`}
        <${Facts} record=${record} />
        <${Inspection} record=${record} />
        <${Versions} record=${record} />
        <${Names} record=${record} />
      </div>
    </div>
  `;
}

function Warnings({ texts }) {
  return html`
    <section class="card warned">
      <h2>Accepted, but perhaps not meant</h2>
      <ul class="warnings">${texts.map((text) => html`<li>${text}</li>`)}</ul>
    </section>
  `;
}

function Facts({ record }) {
  const facts = [
    ["Kind", record.peft_type],
    record.rank && ["Rank", record.rank],
    ["Default scale", precise(record.scale)],
    ["Parameters", number(record.parameters)],
    ["Size", bytes(record.bytes)],
    record.target_modules.length && ["Modules", record.target_modules.join(", ")],
    ["Task", record.task_type],
    record.virtual_tokens && ["Virtual tokens", number(record.virtual_tokens)],
    record.invocation.length && ["Invocation", record.invocation.join(" ")],
    ["Digest", html`<code class="digest">${record.digest}</code>`],
    ["Added", moment(record.created_at)],
    ["Changed", moment(record.updated_at)],
  ].filter(Boolean);
  return html`
    <section class="card">
      <h2>Record</h2>
      <dl class="facts">${facts.map(([title, value]) => html`<dt>${title}</dt><dd>${value}</dd>`)}</dl>
    </section>
  `;
}
