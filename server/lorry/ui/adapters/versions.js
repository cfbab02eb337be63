// An adapter's versions: which is used, going back and forward, and removing one.

import { html, useEffect, useState } from "../html.js";
import { ACTIONS, Listing } from "../listing.js";
import { ask } from "../server.js";
import { may } from "../session.js";
import { Refusal, useAction } from "./action.js";
import { Download } from "./download.js";
import { brief, bytes, moment } from "./figures.js";
import { change, remove } from "./records.js";

/** Returns who added each content, by digest, from the audit; empty without the right to read it. */
function useAuthors(record) {
  const [authors, setAuthors] = useState(new Map());
  useEffect(() => {
    if (!may("admin")) return undefined;
    let wanted = true;
    const query = new URLSearchParams({ adapter: record.name, limit: 200 });
    ask("GET", `/audit?${query}`)
      .then(({ entries }) => {
        const added = entries.filter(({ action }) => action === "added" || action === "replaced");
        if (wanted) setAuthors(new Map(added.map((one) => [one.digest_after, one])));
      })
      .catch(() => {}); // The versions are shown without it.
    return () => (wanted = false);
  }, [record.name, record.versions.length]);
  return authors;
}

const SIZES = ["Rank", "Size"].map((title) => ({ title, number: true }));
const COLUMNS = ["Version", "Added", "By", "Kind", ...SIZES, "Digest"];

export function Versions({ record }) {
  const { run, busy, error } = useAction();
  const authors = useAuthors(record);
  const newest = [...record.versions].sort((a, b) => b.version - a.version);
  const drive = may("upload");
  return html`
    <section class="card wide-panel">
      <h2>Versions</h2>
      <${Refusal} error=${error} />
      <${Listing} label="Table of versions" columns=${drive ? [...COLUMNS, ACTIONS] : COLUMNS}>
        ${newest.map((one) => {
          const by = authors.get(one.digest);
          const used = one.version === record.version;
          return html`
            <tr key=${one.version} aria-current=${used ? "true" : undefined}>
              <th scope="row">${one.version} ${used && html`<span class="badge enabled">current</span>`}</th>
              <td>${moment(one.created_at)}</td>
              <td>${by?.key ?? by?.address ?? html`<span class="faint">–</span>`}</td>
              <td>${one.peft_type}</td>
              <td class="number">${one.rank || "–"}</td>
              <td class="number">${bytes(one.bytes)}</td>
              <td><code title=${one.digest}>${brief(one.digest)}</code></td>
              ${drive && html`<td><${Actions} record=${record} one=${one} used=${used} run=${run} busy=${busy} /></td>`}
            </tr>
          `;
        })}
      <//>
    </section>
  `;
}

function Actions({ record, one, used, run, busy }) {
  return html`
    <div class="row">
      <${Download} name=${record.name} version=${one.version} label=${`version ${one.version}`} />
      ${!used &&
      html`
        <button disabled=${busy} onClick=${() => run(() => change(record.name, { version: one.version }))}>
          ${one.version < record.version ? "Roll back to" : "Go to"} ${one.version}
        </button>
        <button disabled=${busy} onClick=${() => run(() => remove(record.name, one.version))}>
          Remove<span class="unseen"> version ${one.version}</span>
        </button>
      `}
    </div>
  `;
}
