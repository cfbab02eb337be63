// What an adapter's names mean: its own, which may be split between versions, and its aliases.

import { html, useState } from "../html.js";
import { may } from "../session.js";
import { Refusal, useAction } from "./action.js";
import { change } from "./records.js";

export function Names({ record }) {
  const drive = may("upload");
  const aliases = Object.entries(record.aliases);
  if (!drive && !aliases.length && !isSplit(record.split)) return null;
  return html`
    <${Trial} record=${record} drive=${drive} />
    <section class="card stack">
      <h2>Aliases</h2>
      ${aliases.length === 0 && html`<p class="faint note">No other name means one of its versions.</p>`}
      <ul class="names">
        ${aliases.map(
          ([alias, meaning]) => html`
            <li key=${alias}><${Alias} record=${record} alias=${alias} meaning=${meaning} drive=${drive} /></li>
          `,
        )}
      </ul>
      ${drive && html`<${NewAlias} record=${record} />`}
    </section>
  `;
}

const isSplit = (meaning) => typeof meaning === "object" && Object.keys(meaning).length > 0;

function newest(record) {
  return record.versions.map((one) => one.version).sort((a, b) => b - a);
}

function Versions({ record, label, value, onChange, disabled }) {
  return html`
    <select aria-label=${label} value=${value} disabled=${disabled} onChange=${(event) => onChange(Number(event.target.value))}>
      ${newest(record).map((version) => html`<option value=${version}>version ${version}</option>`)}
    </select>
  `;
}

function Shares({ shares }) {
  const sum = Object.values(shares).reduce((a, b) => a + b, 0);
  return html`
    <ul class="shares">
      ${Object.entries(shares).map(
        ([version, weight]) => html`
          <li style=${{ flexGrow: weight }}>
            <span>version ${version}</span> <strong>${Math.round((100 * weight) / sum)} %</strong>
          </li>
        `,
      )}
    </ul>
  `;
}

function Alias({ record, alias, meaning, drive }) {
  const { run, busy, error } = useAction();
  const move = (version) => run(() => change(record.name, { aliases: { [alias]: version } }));
  return html`
    <div class="row">
      <code class="grow">${alias}</code>
      ${isSplit(meaning)
        ? html`<${Shares} shares=${meaning} />`
        : drive
          ? html`<${Versions}
              record=${record}
              label=${`Version that ${alias} means`}
              value=${meaning}
              disabled=${busy}
              onChange=${move}
            />`
          : html`<span>version ${meaning}</span>`}
      ${drive &&
      html`<button
        disabled=${busy}
        onClick=${() => run(() => change(record.name, { aliases: { [alias]: null } }))}
      >
        Remove<span class="unseen"> the alias ${alias}</span>
      </button>`}
    </div>
    <${Refusal} error=${error} />
  `;
}

function NewAlias({ record }) {
  const { run, busy, error } = useAction();
  const [name, setName] = useState("");
  const [version, setVersion] = useState(record.version);
  const submit = async (event) => {
    event.preventDefault();
    if (await run(() => change(record.name, { aliases: { [name.trim()]: version } }))) setName("");
  };
  return html`
    <form onSubmit=${submit}>
      <div class="row">
        <label class="grow">
          New alias
          <input
            type="text"
            class="wide"
            required
            placeholder=${`${record.name}@prod`}
            value=${name}
            onInput=${(event) => setName(event.target.value)}
          />
        </label>
        <${Versions} record=${record} label="Version of the new alias" value=${version} onChange=${setVersion} />
        <button type="submit" disabled=${busy || !name.trim()}>Set</button>
      </div>
      <${Refusal} error=${error} />
    </form>
  `;
}

/** A trial of two versions under the adapter's own name. */
function Trial({ record, drive }) {
  const { run, busy, error } = useAction();
  const versions = newest(record);
  const [other, setOther] = useState(null);
  const [weight, setWeight] = useState(10);
  const running = isSplit(record.split);
  if (!running && (!drive || versions.length < 2)) return null;
  const chosen = other ?? versions.find((version) => version !== record.version);
  const start = (event) => {
    event.preventDefault();
    run(() =>
      change(record.name, {
        version: record.version,
        split: { [record.version]: 100 - weight, [chosen]: weight },
      }),
    );
  };
  return html`
    <section class="card stack">
      <h2>Trial of a version</h2>
      ${running
        ? html`
            <${Shares} shares=${record.split} />
            ${drive &&
            html`
              <div class="row">
                ${Object.keys(record.split).map(
                  (version) => html`
                    <button disabled=${busy} onClick=${() => run(() => change(record.name, { version: Number(version) }))}>
                      Promote ${version}
                    </button>
                  `,
                )}
                <button disabled=${busy} onClick=${() => run(() => change(record.name, { split: {} }))}>Withdraw</button>
              </div>
              <p class="faint note">Withdrawn, every request gets version ${record.version}.</p>
            `}
          `
        : html`
            <form onSubmit=${start} class="stack">
              <div class="row">
                <span>Give</span>
                <input
                  type="number"
                  class="narrow"
                  min="1"
                  max="99"
                  required
                  aria-label="Percent of the requests"
                  value=${weight}
                  onInput=${(event) => setWeight(Number(event.target.value))}
                />
                <span>% of the requests</span>
                <${Versions} record=${record} label="Version on trial" value=${chosen} onChange=${setOther} />
                <button type="submit" disabled=${busy || chosen === record.version}>Start</button>
              </div>
              <p class="faint note">The others keep version ${record.version}. A user stays with one version.</p>
            </form>
          `}
      <${Refusal} error=${error} />
    </section>
  `;
}
