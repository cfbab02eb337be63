// The table of adapters: search, sorting, and the switch of each. The search and the order stand in the
// address.

import { html } from "../html.js";
import { address, go, place } from "../place.js";
import { may } from "../session.js";
import { Refusal, useAction } from "./action.js";
import { Residency, StateBadge, Switch } from "./badges.js";
import { bytes, number, precise, short } from "./figures.js";
import { change, records, stateOf, unread } from "./records.js";
import { traffic } from "./traffic.js";

const PLACES = ["device", "host", "disk"];
const STATES = ["broken", "loading", "enabled", "disabled"];

// `value` is sorted by; those with `number` begin with the largest.
const COLUMNS = [
  { id: "name", title: "Name", value: (one) => one.name.toLowerCase() },
  { id: "state", title: "State", value: (one) => STATES.indexOf(stateOf(one)) },
  { id: "scale", title: "Scale", number: true, value: (one) => one.scale },
  { id: "rank", title: "Rank", number: true, value: (one) => one.rank },
  { id: "kind", title: "Kind", value: (one) => one.peft_type },
  { id: "size", title: "Size", number: true, value: (one) => one.bytes },
  { id: "weights", title: "Weights", value: (one) => PLACES.indexOf(one.residency) },
  { id: "requests", title: "Requests", number: true, value: (one) => trafficOf(one)?.requests ?? 0 },
  { id: "tokens", title: "Tokens", number: true, value: (one) => trafficOf(one)?.tokens ?? 0 },
  { id: "pinned", title: "Pinned", value: (one) => (one.pinned ? 0 : 1) },
  { id: "version", title: "Version", number: true, value: (one) => one.version },
];

function trafficOf(record) {
  return traffic.value?.get(record.name);
}

/** Returns the records that a search finds: every word, in the name, description, aliases or kind. */
export function found(all, search) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return all;
  return all.filter((one) => {
    const text = [one.name, one.description, one.peft_type, stateOf(one), ...Object.keys(one.aliases)]
      .join("\n")
      .toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

/** Returns the records in the order of a column; those that are equal in it by name. */
export function sorted(all, id, descending) {
  const { value } = COLUMNS.find((column) => column.id === id) ?? COLUMNS[0];
  const sign = descending ? -1 : 1;
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return all
    .map((one) => [value(one), one])
    .sort(([a, x], [b, y]) => sign * compare(a, b) || compare(x.name, y.name))
    .map(([, one]) => one);
}

function set(changes) {
  const query = { ...Object.fromEntries(place.value.query), ...changes };
  for (const name of Object.keys(query)) if (!query[name]) delete query[name];
  go(address("adapters", [], query), { replace: true });
}

function sortBy(column, order) {
  const was = order.id === column.id;
  const descending = was ? !order.descending : Boolean(column.number);
  set({ sort: column.id, order: descending ? "down" : "up" });
}

export function Table() {
  const all = records.value;
  const { query } = place.value;
  const search = query.get("q") ?? "";
  const order = { id: query.get("sort") ?? "name", descending: query.get("order") === "down" };
  if (unread.value) return html`<${Refusal} error=${unread.value} />`;
  if (!all) return html`<p class="faint" role="status">Reading the list…</p>`;
  if (!all.length) return html`<${Nothing} />`;
  const rows = sorted(found(all, search), order.id, order.descending);
  const columns = COLUMNS.filter(({ id }) => traffic.value || !["requests", "tokens"].includes(id));
  return html`
    <div class="row adapters-search">
      <label class="grow">
        <span class="unseen">Search adapters</span>
        <input
          type="search"
          placeholder="Search by name, description, alias or kind"
          value=${search}
          onInput=${(event) => set({ q: event.target.value })}
        />
      </label>
      <label class="only-narrow">
        <span class="unseen">Sort by</span>
        <select
          value=${order.id}
          onChange=${(event) =>
            sortBy(COLUMNS.find(({ id }) => id === event.target.value), { id: null })}
        >
          ${columns.map(({ id, title }) => html`<option value=${id}>${title}</option>`)}
        </select>
      </label>
      <span class="faint" role="status">
        ${rows.length === all.length ? number(all.length) : `${number(rows.length)} of ${number(all.length)}`}
        ${" "}${all.length === 1 ? "adapter" : "adapters"}
      </span>
    </div>
    ${rows.length
      ? html`
          <div class="scroller" tabindex="0" role="region" aria-label="Table of adapters">
            <table class="adapters">
              <thead>
                <tr>${columns.map((column) => html`<${Head} column=${column} order=${order} />`)}</tr>
              </thead>
              <tbody>
                ${rows.map(
                  (one) => html`<${Row} key=${one.name} record=${one} moved=${trafficOf(one)} />`,
                )}
              </tbody>
            </table>
          </div>
          ${traffic.value &&
          html`<p class="faint note">
            Requests and tokens are counted since the server's start; “+” is the last five minutes as this page saw
            them.
          </p>`}
        `
      : html`<p class="empty">No adapter matches “${search}”.</p>`}
  `;
}

function Nothing() {
  return html`
    <div class="empty">
      <p>There is no adapter yet.</p>
      ${may("upload") && html`<p>Drop the folder that PEFT has saved, or an archive of it, anywhere on this page.</p>`}
    </div>
  `;
}

function Head({ column, order }) {
  const mine = order.id === column.id;
  const direction = order.descending ? "descending" : "ascending";
  return html`
    <th scope="col" class=${column.number ? "number" : ""} aria-sort=${mine ? direction : undefined}>
      <button class="quiet" onClick=${() => sortBy(column, order)}>
        ${column.title}<span class="arrow" aria-hidden="true">${mine ? (order.descending ? "▼" : "▲") : ""}</span>
      </button>
    </th>
  `;
}

// `null`, not "", where there is nothing: Preact writes an empty text anew whenever it looks at it.
function Row({ record, moved }) {
  const { run, busy, error } = useAction();
  const toggle = async (enabled, field) => {
    if (!(await run(() => change(record.name, { enabled })))) field.checked = record.enabled;
  };
  const aliases = Object.keys(record.aliases);
  return html`
    <tr class=${record.enabled ? "" : "off"}>
      <th scope="row" class="name">
        <a href=${address("adapters", [record.name])}>${record.name}</a>
        ${aliases.map((alias) => html`<span class="alias" title="An alias of it">${alias}</span>`)}
        ${record.description ? html`<span class="description">${record.description}</span>` : null}
        <${Refusal} error=${error} />
      </th>
      <td data-title="State">
        <span class="state-cell">
          ${may("upload") &&
          html`<${Switch}
            label=${`Enable ${record.name}`}
            checked=${record.enabled}
            disabled=${busy}
            onChange=${toggle}
          />`}
          <${StateBadge} record=${record} />
        </span>
      </td>
      <td data-title="Scale" class="number">${precise(record.scale)}</td>
      <td data-title="Rank" class="number">${record.rank || "–"}</td>
      <td data-title="Kind">${record.peft_type}</td>
      <td data-title="Size" class="number">${bytes(record.bytes)}</td>
      <td data-title="Weights"><${Residency} where=${record.residency} /></td>
      ${traffic.value &&
      html`
        <${Count} title="Requests" total=${moved?.requests ?? 0} recent=${moved?.recentRequests} />
        <${Count} title="Tokens" total=${moved?.tokens ?? 0} recent=${moved?.recentTokens} />
      `}
      <td data-title="Pinned">${record.pinned ? "pinned" : html`<span class="faint">no</span>`}</td>
      <td data-title="Version" class="number">
        ${record.version}
        ${Object.keys(record.split).length > 0 && html`<span class="faint"> split</span>`}
      </td>
    </tr>
  `;
}

function Count({ title, total, recent }) {
  return html`
    <td data-title=${title} class="number" title=${`${number(total)} since the server's start`}>
      ${short(total)}${recent > 0 && html` <span class="recent">+${short(recent)}</span>`}
    </td>
  `;
}
