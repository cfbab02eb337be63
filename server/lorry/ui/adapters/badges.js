// Small signs: an adapter's state, and where its weights are.

import { html } from "../html.js";
import { stateOf } from "./records.js";

export function StateBadge({ record }) {
  const state = stateOf(record);
  const shown = record.fetch ? record.fetch.state : state;
  return html`<span class=${`badge ${state}`} title=${record.broken ?? undefined}>${shown}</span>`;
}

const PLACES = {
  device: "In a slot of the model's device: used without any loading",
  host: "In the host cache: loaded into a slot when it is used",
  disk: "On disk: read when it is used",
};

export function Residency({ where }) {
  return html`<span class=${`where ${where}`} title=${PLACES[where]}>${where}</span>`;
}

/** A switch, which is a checkbox to everybody but the eye. */
export function Switch({ label, checked, disabled, onChange, named = false }) {
  return html`
    <label class="switch">
      <input
        type="checkbox"
        role="switch"
        checked=${checked}
        disabled=${disabled}
        onChange=${(event) => onChange(event.target.checked, event.target)}
      />
      <span class=${named ? "" : "unseen"}>${label}</span>
    </label>
  `;
}
