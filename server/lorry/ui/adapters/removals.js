// Adapters that are about to be deleted. The request is sent a few seconds later, so that Undo can
// prevent it; the server cannot bring an adapter back. If the page is left before, nothing is deleted.

import { html, signal } from "../html.js";
import { Refusal } from "./action.js";
import { remove } from "./records.js";

const DELAY = 8000; // ms

/** `{ name, timer, error }` of each. */
const removals = signal([]);

/** Returns whether an adapter is about to be deleted. */
export const leaving = (name) => removals.value.some((one) => one.name === name && !one.error);

export function removeLater(name) {
  undo(name);
  const timer = setTimeout(() => now(name), DELAY);
  removals.value = [...removals.value, { name, timer, error: null }];
}

function undo(name) {
  clearTimeout(removals.value.find((one) => one.name === name)?.timer);
  removals.value = removals.value.filter((one) => one.name !== name);
}

async function now(name) {
  try {
    await remove(name);
    undo(name);
  } catch (error) {
    removals.value = removals.value.map((one) => (one.name === name ? { ...one, error } : one));
  }
}

export function Removals() {
  return html`
    <div class="removals" role="status">
      ${removals.value.map(
        ({ name, error }) => html`
          <div class="removal" key=${name}>
            <span>
              ${error ? `${name} was not deleted.` : `${name} is deleted in a few seconds, unless you leave this page.`}
            </span>
            <${Refusal} error=${error} />
            <button onClick=${() => undo(name)}>${error ? "Close" : "Undo"}<span class="unseen"> the deletion of ${name}</span></button>
          </div>
        `,
      )}
    </div>
  `;
}
