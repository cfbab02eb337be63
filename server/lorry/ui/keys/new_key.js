// The form for a new key.

import { html } from "../html.js";
import { ask } from "../server.js";
import { Refusal, useAction } from "../adapters/action.js";

const SCOPES = ["generate", "upload", "admin"];
const LIMITS = {
  requests_per_minute: "Requests a minute",
  tokens_per_minute: "Tokens a minute",
  concurrent_requests: "Requests at a time",
  max_adapters: "Adapters",
  max_rank: "Largest rank",
};

function bodyOf(form) {
  const data = new FormData(form);
  const text = (name) => data.get(name).trim();
  const patterns = text("adapters").split(/[\s,]+/).filter(Boolean);
  const limits = Object.keys(LIMITS).filter(text).map((name) => [name, Number(text(name))]);
  return {
    name: text("name"),
    scopes: data.getAll("scopes"),
    adapters: patterns.length ? patterns : null,
    limits: limits.length ? Object.fromEntries(limits) : null,
    description: text("description"),
  };
}

export function NewKey({ onMade }) {
  const { run, busy, error } = useAction();
  const submit = (event) => {
    event.preventDefault();
    const form = event.target;
    run(async () => {
      onMade(await ask("POST", "/keys", { body: bodyOf(form) }));
      form.reset();
    });
  };
  return html`
    <details class="card">
      <summary>New key</summary>
      <form class="stack" onSubmit=${submit}>
        <div class="row">
          <label>Name <input type="text" name="name" required autocomplete="off" /></label>
          <label class="grow">Description <input type="text" name="description" class="wide" /></label>
        </div>
        <fieldset class="row">
          <legend>Scopes</legend>
          ${SCOPES.map(
            (scope) => html`
              <label><input type="checkbox" name="scopes" value=${scope} defaultChecked=${scope === "generate"} /> ${scope}</label>
            `,
          )}
        </fieldset>
        <label>
          Adapters
          <input type="text" name="adapters" class="wide" placeholder="legal-*, pirate; empty: all" />
        </label>
        <fieldset class="row">
          <legend>Limits; empty: none</legend>
          ${Object.entries(LIMITS).map(
            ([name, title]) => html`<label>${title} <input type="number" class="narrow" min="0" name=${name} /></label>`,
          )}
        </fieldset>
        <div><button class="main" type="submit" disabled=${busy}>Make the key</button></div>
        <${Refusal} error=${error} />
      </form>
    </details>
  `;
}
