// How answers are drawn: sampling, seed, JSON schema, and what is shown of the answers.

import { html } from "../html.js";
import { SETTINGS, mistake, schema, seed, settings } from "./comparison.js";

/** The settings that are not as usual, in words. */
function summary() {
  const { temperature, max_tokens: most } = settings.value;
  const said = [temperature === 0 ? "greedy" : `temperature ${temperature}`, `at most ${most} tokens`];
  if (seed.value) said.push(`seed ${seed.value}`);
  if (schema.value.trim()) said.push("JSON schema");
  return said.join(" · ");
}

export function Settings() {
  return html`
    <details class="settings" id="settings">
      <summary>Settings <span class="faint">${summary()}</span></summary>
      <div class="fields">
        ${Object.entries(SETTINGS).map(([name, about]) => html`<${Setting} name=${name} about=${about} key=${name} />`)}
        <label>
          <span>Seed</span>
          <input
            type="text"
            inputmode="numeric"
            pattern="[0-9]{0,15}"
            placeholder="drawn for each run"
            value=${seed.value}
            onInput=${(event) => (seed.value = event.target.value.replace(/\D/g, "").slice(0, 15))}
          />
        </label>
      </div>
      <label class="schema">
        <span>JSON schema that the answers must match</span>
        <textarea
          id="schema"
          class="mono"
          rows="4"
          spellcheck=${false}
          placeholder='{"type": "object", "properties": {"dish": {"type": "string"}}}'
          value=${schema.value}
          aria-invalid=${String(Boolean(mistake.value))}
          aria-describedby="schema-problem"
          onInput=${(event) => (schema.value = event.target.value)}
        ></textarea>
      </label>
      <p id="schema-problem" class="problem" role="alert">${mistake.value}</p>
    </details>
  `;
}

function Setting({ name, about }) {
  const set = (event) => {
    const value = event.target.valueAsNumber;
    if (value >= about.low && value <= about.high) settings.value = { ...settings.value, [name]: value };
  };
  return html`
    <label>
      <span>${about.title}</span>
      <input
        type="number"
        min=${about.low}
        max=${about.high}
        step=${about.step}
        value=${settings.value[name]}
        onInput=${set}
        onBlur=${(event) => (event.target.value = settings.value[name])}
      />
    </label>
  `;
}

/** Opens the settings at the schema. */
export function showSchema() {
  document.getElementById("settings").open = true;
  document.getElementById("schema").focus();
}
