// What may be changed of an adapter: state, default scale, pin, description, and how long versions stay.

import { html, useEffect, useState } from "../html.js";
import { Refusal, useAction } from "./action.js";
import { Switch } from "./badges.js";
import { info } from "../session.js";
import { change } from "./records.js";

export function Settings({ record }) {
  return html`
    <section class="card settings">
      <h2>Settings</h2>
      <${Truth} record=${record} field="enabled" label="Enabled" />
      <${Truth} record=${record} field="pinned" label="Pinned" note="Its weights stay on the device." />
      <${Scale} record=${record} />
      <${Description} record=${record} />
      <${Kept} record=${record} />
    </section>
  `;
}

function Truth({ record, field, label, note }) {
  const { run, busy, error } = useAction();
  const set = async (value, input) => {
    if (!(await run(() => change(record.name, { [field]: value })))) input.checked = record[field];
  };
  return html`
    <div>
      <div class="row">
        <${Switch} named label=${label} checked=${record[field]} disabled=${busy} onChange=${set} />
        ${note && html`<span class="faint">${note}</span>`}
      </div>
      <${Refusal} error=${error} />
    </div>
  `;
}

/** Returns `[value, set]`: what stands on the server until the user writes something else. */
function useDraft(current) {
  const [draft, setDraft] = useState(current);
  const [seen, setSeen] = useState(current);
  useEffect(() => {
    // A change by somebody else does not overwrite what is being written.
    if (draft === seen) setDraft(current);
    setSeen(current);
  }, [current]);
  return [draft, setDraft];
}

function Scale({ record }) {
  const { run, busy, error } = useAction();
  const [draft, setDraft] = useDraft(String(record.scale));
  const most = info.value.limits.max_scale;
  const changed = draft.trim() !== "" && Number(draft) !== record.scale;
  const submit = (event) => {
    event.preventDefault();
    run(() => change(record.name, { scale: Number(draft) }));
  };
  if (!record.scalable) {
    return html`<p class="faint note">${record.peft_type} has no strength to scale: it is used at 1, or at 0 for the base.</p>`;
  }
  return html`
    <form onSubmit=${submit}>
      <div class="row">
        <label>
          Default scale
          <input
            type="number"
            class="narrow"
            step="any"
            min=${-most}
            max=${most}
            required
            value=${draft}
            onInput=${(event) => setDraft(event.target.value)}
          />
        </label>
        <input
          class="grow"
          type="range"
          min="-2"
          max="4"
          step="0.05"
          aria-label="Default scale from -2 to 4"
          value=${draft}
          onInput=${(event) => setDraft(event.target.value)}
        />
        <button type="submit" disabled=${!changed || busy}>Save<span class="unseen"> the scale</span></button>
      </div>
      <${Refusal} error=${error} />
    </form>
  `;
}

function Description({ record }) {
  const { run, busy, error } = useAction();
  const [draft, setDraft] = useDraft(record.description);
  const submit = (event) => {
    event.preventDefault();
    run(() => change(record.name, { description: draft }));
  };
  return html`
    <form onSubmit=${submit}>
      <label>
        Description
        <textarea rows="3" value=${draft} onInput=${(event) => setDraft(event.target.value)}></textarea>
      </label>
      <button type="submit" disabled=${draft === record.description || busy}>
        Save<span class="unseen"> the description</span>
      </button>
      <${Refusal} error=${error} />
    </form>
  `;
}

/** Returns what a field means for the server: nothing is its default. */
const kept = (draft) => (String(draft).trim() === "" ? "default" : Number(draft));

function Kept({ record }) {
  const { run, busy, error } = useAction();
  const [versions, setVersions] = useDraft(String(record.keep_versions ?? ""));
  const [days, setDays] = useDraft(String(record.keep_days ?? ""));
  const changed =
    kept(versions) !== (record.keep_versions ?? "default") || kept(days) !== (record.keep_days ?? "default");
  const submit = (event) => {
    event.preventDefault();
    run(() => change(record.name, { keep_versions: kept(versions), keep_days: kept(days) }));
  };
  const field = (title, value, set, step) => html`
    <label>
      ${title}
      <input
        type="number"
        class="narrow"
        min="0"
        step=${step}
        placeholder="default"
        value=${value}
        onInput=${(event) => set(event.target.value)}
      />
    </label>
  `;
  return html`
    <form onSubmit=${submit}>
      <div class="row">
        ${field("Versions kept", versions, setVersions, 1)} ${field("Days kept", days, setDays, "any")}
        <button type="submit" disabled=${!changed || busy}>Save<span class="unseen"> how long versions are kept</span></button>
      </div>
      <p class="faint note">
        Older ones are removed at once, but none that is current, in use, in a trial or behind an alias, nor the newest
        two. 0 keeps all; if empty, the server's default counts.
      </p>
      <${Refusal} error=${error} />
    </form>
  `;
}
