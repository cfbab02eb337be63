// What a column answers with: the base, an adapter, or a sum of adapters with a slider for each.

import { html } from "../html.js";
import { info } from "../session.js";
import { adapters, record } from "./choices.js";
import { Picker } from "./picker.js";

const WIDE = 2; // the slider's range; the field beside it takes all that the server does

export function Sum({ column, title }) {
  const parts = column.parts.value;
  const change = (at, part) => (column.parts.value = parts.map((one, i) => (i === at ? part : one)));
  const remove = (at) => (column.parts.value = parts.filter((_, i) => i !== at));
  const pick = (at, name) => {
    if (!name) remove(at);
    else if (at < parts.length) change(at, { name, scale: null });
    else column.parts.value = [...parts, { name, scale: null }];
  };
  const most = info.value.limits.max_adapters_per_request ?? 8;
  if (!parts.length) {
    return html`<${Picker} value="" empty="Base model" label=${`${title}: answers with`} onPick=${(name) => pick(0, name)} />`;
  }
  return html`
    ${parts.map(
      (part, at) => html`
        <div class="part" key=${`${at} ${part.name}`}>
          <${Picker}
            value=${part.name}
            empty=${parts.length === 1 ? "Base model" : undefined}
            label=${parts.length === 1 ? `${title}: answers with` : `${title}: adapter ${at + 1}`}
            onPick=${(name) => pick(at, name)}
          />
          ${parts.length > 1 &&
          html`<button class="quiet small" aria-label=${`${title}: remove ${part.name}`} onClick=${() => remove(at)}>✕</button>`}
          <${Scale} part=${part} title=${title} onChange=${(scale) => change(at, { ...part, scale })} />
        </div>
      `,
    )}
    ${parts.length < most &&
    html`<button class="quiet small add" onClick=${() => pick(parts.length, unused(parts))} disabled=${!unused(parts)}>
      + Add to the sum
    </button>`}
  `;
}

/** The first adapter that is not in the sum yet, or nothing. */
function unused(parts) {
  const taken = new Set(parts.map(({ name }) => name));
  return (adapters.value ?? []).find(({ name }) => !taken.has(name))?.name;
}

function Scale({ part, title, onChange }) {
  const known = record(part.name);
  const most = info.value.limits.max_scale ?? 16;
  const value = part.scale ?? known?.scale ?? 1;
  const label = `${title}: scale of ${part.name}`;
  const set = (event) => {
    const found = event.target.valueAsNumber;
    if (Number.isFinite(found)) onChange(found);
  };
  if (known && !known.scalable) {
    return html`
      <label class="scale check">
        <input type="checkbox" checked=${value !== 0} onChange=${(event) => onChange(event.target.checked ? 1 : 0)} />
        On <small class="faint">This kind takes the scales 0 and 1 only.</small>
      </label>
    `;
  }
  return html`
    <div class="scale">
      <input type="range" min=${-WIDE} max=${WIDE} step="0.05" value=${value} aria-label=${label} onInput=${set} />
      <input type="number" min=${-most} max=${most} step="0.05" value=${value} aria-label=${`${label}, as a number`} onInput=${set} />
    </div>
  `;
}
