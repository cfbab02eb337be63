// The keys of the server: making, rotating and revoking them. A key's text is shown once.

import { html, useEffect, useState } from "../html.js";
import { ask } from "../server.js";
import { Refusal, useAction } from "../adapters/action.js";
import { moment, number } from "../adapters/figures.js";
import { ACTIONS, Listing } from "../listing.js";
import { ChangeKey, LIMITS, NewKey, pathOf } from "./key_form.js";

export function Keys() {
  const [keys, setKeys] = useState(null);
  const [made, setMade] = useState(null);
  const [changing, setChanging] = useState(null);
  const { run, error } = useAction();
  const read = () => run(async () => setKeys((await ask("GET", "/keys")).keys));
  useEffect(() => void read(), []);
  const onMade = (key) => {
    setMade(key);
    read();
  };
  const onChanged = () => {
    setChanging(null);
    read();
  };
  return html`
    <div class="adapters-page">
      <h1>Keys</h1>
      <${NewKey} onMade=${onMade} />
      ${made && html`<${Once} made=${made} close=${() => setMade(null)} />`}
      ${changing && html`<${ChangeKey} key=${changing.id} one=${changing} onDone=${onChanged} />`}
      <${Refusal} error=${error} />
      ${keys &&
      (keys.length
        ? html`<${List} keys=${keys} onMade=${onMade} onGone=${read} onChange=${setChanging} />`
        : html`<p class="empty">There is no key but the server's own.</p>`)}
    </div>
  `;
}

function Once({ made, close }) {
  const [copied, setCopied] = useState(false);
  const copy = () => navigator.clipboard.writeText(made.key).then(() => setCopied(true), () => {});
  return html`
    <section class="card warned" role="status">
      <p class="note">The key ${made.name}. It is shown this once and stored nowhere.</p>
      <div class="row">
        <code class="grow secret">${made.key}</code>
        <button onClick=${copy}>${copied ? "Copied" : "Copy"}</button>
        <button onClick=${close}>Close</button>
      </div>
    </section>
  `;
}

const COLUMNS = ["Name", "Scopes", "Adapters", "Limits", "Made", ACTIONS];

function List({ keys, ...on }) {
  return html`
    <${Listing} label="Table of keys" columns=${COLUMNS}>
      ${keys.map((one) => html`<${Row} key=${one.id} one=${one} ...${on} />`)}
    <//>
  `;
}

function Row({ one, onMade, onGone, onChange }) {
  const { run, busy, error } = useAction();
  const [asked, setAsked] = useState(false);
  const limits = Object.entries(one.limits).filter(([, value]) => value !== null);
  const rotate = () => run(async () => onMade(await ask("POST", `${pathOf(one.name)}/rotate`, { body: {} })));
  const revoke = () =>
    run(async () => {
      await ask("DELETE", pathOf(one.name));
      onGone();
    });
  return html`
    <tr>
      <th scope="row" title=${one.description}>${one.name}</th>
      <td>${one.scopes.map((scope) => html`<span class="badge enabled">${scope}</span> `)}</td>
      <td class="long">${one.adapters ? one.adapters.join(", ") : "all"}</td>
      <td class="long">${limits.map(([name, value]) => `${LIMITS[name] ?? name}: ${number(value)}`).join(", ") || "none"}</td>
      <td>${moment(one.created_at)}</td>
      <td>
        <div class="row">
          ${asked
            ? html`
                <button class="danger" disabled=${busy} onClick=${revoke}>Revoke ${one.name}</button>
                <button onClick=${() => setAsked(false)}>Keep<span class="unseen"> ${one.name}</span></button>
              `
            : html`
                <button onClick=${() => onChange(one)}>Change<span class="unseen"> ${one.name}</span></button>
                <button disabled=${busy} onClick=${rotate}>Rotate<span class="unseen"> ${one.name}</span></button>
                <button class="danger" onClick=${() => setAsked(true)}>Revoke…<span class="unseen"> ${one.name}</span></button>
              `}
        </div>
        <${Refusal} error=${error} />
      </td>
    </tr>
  `;
}
