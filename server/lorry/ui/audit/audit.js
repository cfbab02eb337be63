// Who changed which adapter or key, the newest first.

import { html, useEffect, useState } from "../html.js";
import { address, go, place } from "../place.js";
import { Listing } from "../listing.js";
import { ask } from "../server.js";
import { Refusal, useAction } from "../adapters/action.js";
import { brief, moment } from "../adapters/figures.js";

const PAGE = 50;

export function Audit() {
  const adapter = place.value.query.get("adapter") ?? "";
  const key = place.value.query.get("key") ?? "";
  const [entries, setEntries] = useState(null);
  const [next, setNext] = useState(null);
  const { run, busy, error } = useAction();
  const read = (before, earlier) =>
    run(async () => {
      const query = new URLSearchParams({ limit: PAGE });
      for (const [name, value] of Object.entries({ adapter, key, before })) if (value) query.set(name, value);
      const answer = await ask("GET", `/audit?${query}`);
      setEntries([...earlier, ...answer.entries]);
      setNext(answer.next);
    });
  useEffect(() => void read(null, []), [adapter, key]);
  return html`
    <div class="adapters-page">
      <h1>Audit</h1>
      <${Filter} key=${`${adapter} ${key}`} adapter=${adapter} of=${key} />
      <${Refusal} error=${error} />
      ${entries &&
      (entries.length
        ? html`<${Entries} entries=${entries} />`
        : html`<p class="empty" role="status">Nothing was changed.</p>`)}
      ${next && html`<div><button disabled=${busy} onClick=${() => read(next, entries)}>Show earlier ones</button></div>`}
    </div>
  `;
}

function Filter({ adapter, of }) {
  const submit = (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(event.target));
    go(address("audit", [], Object.fromEntries(Object.entries(given).filter(([, value]) => value.trim()))));
  };
  return html`
    <form class="row" role="search" onSubmit=${submit}>
      <label>Adapter <input type="search" name="adapter" defaultValue=${adapter} /></label>
      <label>Key <input type="search" name="key" defaultValue=${of} /></label>
      <button type="submit">Filter</button>
    </form>
  `;
}

function Entries({ entries }) {
  return html`
    <${Listing} label="Table of changes" columns=${["When", "Who", "What", "Changes"]}>
      ${entries.map(
        (one) => html`
          <tr key=${one.id}>
            <td>${moment(one.at)}</td>
            <td>${[one.key, one.address].filter(Boolean).join(" · ") || "the server"}</td>
            <td>${one.kind} <strong>${one.name}</strong> ${one.action}</td>
            <td class="long">${changesOf(one)}</td>
          </tr>
        `,
      )}
    <//>
  `;
}

function changesOf(entry) {
  const said = Object.entries(entry.detail).map(([field, value]) =>
    Array.isArray(value) ? `${field}: ${shown(value[0])} → ${shown(value[1])}` : `${field}: ${shown(value)}`,
  );
  const [before, after] = [entry.digest_before, entry.digest_after];
  if (before !== after) said.push(`content: ${before ? brief(before) : "none"} → ${after ? brief(after) : "none"}`);
  return said.join("; ");
}

const shown = (value) => (typeof value === "string" ? value || "none" : JSON.stringify(value));
