// The form for a new key, and for changes of one.

import { html, useEffect, useRef } from "../html.js";
import { ask } from "../server.js";
import { Refusal, useAction } from "../adapters/action.js";

const SCOPES = ["generate", "upload", "admin"];
/** What a key's limits are called here. */
export const LIMITS = {
  requests_per_minute: "Requests a minute",
  tokens_per_minute: "Tokens a minute",
  concurrent_requests: "Requests at a time",
  max_adapters: "Adapters",
  max_adapter_bytes: "Bytes of adapters",
  max_rank: "Largest rank",
  max_scale: "Largest scale",
  weight: "Share when busy",
};

/** The path of a key. */
export const pathOf = (name) => `/keys/${encodeURIComponent(name)}`;

/** Returns the body of a new key; of changes, all limits: those that are empty are lifted. */
function bodyOf(form) {
  const data = new FormData(form);
  const text = (name) => data.get(name).trim();
  const patterns = text("adapters").split(/[\s,]+/).filter(Boolean);
  return {
    scopes: data.getAll("scopes"),
    adapters: patterns.length ? patterns : null,
    limits: Object.fromEntries(Object.keys(LIMITS).map((name) => [name, text(name) ? Number(text(name)) : null])),
    description: text("description"),
  };
}

function Fields({ one }) {
  return html`
    <fieldset class="row">
      <legend>Scopes</legend>
      ${SCOPES.map(
        (scope) => html`
          <label>
            <input type="checkbox" name="scopes" value=${scope} defaultChecked=${one.scopes.includes(scope)} /> ${scope}
          </label>
        `,
      )}
    </fieldset>
    <label>
      Adapters
      <input
        type="text"
        name="adapters"
        class="wide"
        placeholder="legal-*, pirate; empty: all"
        defaultValue=${one.adapters?.join(", ") ?? ""}
      />
    </label>
    <fieldset class="limits">
      <legend>Limits; empty: none</legend>
      ${Object.entries(LIMITS).map(
        ([name, title]) => html`
          <label>
            ${title}
            <input type="number" min="0" step="any" name=${name} defaultValue=${one.limits[name] ?? ""} />
          </label>
        `,
      )}
    </fieldset>
  `;
}

function Description({ one }) {
  return html`
    <label class="grow">
      Description <input type="text" name="description" class="wide" defaultValue=${one.description} />
    </label>
  `;
}

const NOTHING = { scopes: ["generate"], adapters: null, limits: {}, description: "" };

export function NewKey({ onMade }) {
  const { run, busy, error } = useAction();
  const submit = (event) => {
    event.preventDefault();
    const form = event.target;
    run(async () => {
      onMade(await ask("POST", "/keys", { body: { name: form.elements.name.value.trim(), ...bodyOf(form) } }));
      form.reset();
    });
  };
  return html`
    <details class="card">
      <summary>New key</summary>
      <form class="stack" onSubmit=${submit}>
        <div class="row">
          <label>Name <input type="text" name="name" required autocomplete="off" /></label>
          <${Description} one=${NOTHING} />
        </div>
        <${Fields} one=${NOTHING} />
        <div><button class="main" type="submit" disabled=${busy}>Make the key</button></div>
        <${Refusal} error=${error} />
      </form>
    </details>
  `;
}

/** Calls `onDone` when the changes are in force, or were given up. */
export function ChangeKey({ one, onDone }) {
  const { run, busy, error } = useAction();
  const title = useRef(null);
  useEffect(() => title.current.focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    const body = bodyOf(event.target);
    if (await run(() => ask("PATCH", pathOf(one.name), { body }))) onDone();
  };
  return html`
    <section class="card">
      <h2 ref=${title} tabindex="-1">Change ${one.name}</h2>
      <form class="stack" onSubmit=${submit}>
        <${Description} one=${one} />
        <${Fields} one=${one} />
        <div class="row">
          <button class="main" type="submit" disabled=${busy}>Save</button>
          <button type="button" onClick=${onDone}>Cancel</button>
          <span class="faint note">In force for its next request.</span>
        </div>
        <${Refusal} error=${error} />
      </form>
    </section>
  `;
}
