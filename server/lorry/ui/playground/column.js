// A column: what answers, its answers with figures, and what went wrong with them.

import { html, useState } from "../html.js";
import { colours, columns, differences, mistake, mode, turns } from "./comparison.js";
import { request } from "./request.js";
import { drawn, regenerate } from "./run.js";
import { Snippet } from "./snippet.js";
import { Sum } from "./sum.js";
import { Writing } from "./writing.js";

export function Column({ column, at }) {
  const [copying, setCopying] = useState(null);
  const title = `Column ${at + 1}`;
  const all = columns.value;
  const answers = column.answers.value;
  const last = answers.at(-1);
  const chat = mode.value === "chat";
  const first = all[0] === column ? [] : all[0].answers.value;
  const shown = chat ? turns.value : answers;
  return html`
    <section class="column card" aria-label=${title}>
      <header>
        <span class="number" aria-hidden="true">${at + 1}</span>
        <div class="sum"><${Sum} column=${column} title=${title} /></div>
        ${all.length > 1 &&
        html`<button
          class="quiet small"
          aria-label=${`Remove column ${at + 1}`}
          onClick=${() => {
            column.stop.value?.abort();
            columns.value = all.filter((one) => one !== column);
          }}
        >
          ✕
        </button>`}
      </header>
      <div class="answers" role="region" aria-label=${`${title}: answers`} tabindex="0">
        ${!shown.length && html`<p class="faint empty">No answer yet.</p>`}
        ${shown.map(
          (turn, i) => html`
            <div class="turn" key=${i}>
              ${chat && html`<p class="said"><span class="unseen">You: </span>${turn}</p>`}
              ${answers[i]
                ? html`<${Answered} answer=${answers[i]} base=${first[i]} label=${`${title}: answer ${i + 1}`} key=${i} />`
                : html`<p class="faint empty">Not answered yet.</p>`}
            </div>
          `,
        )}
      </div>
      <footer>
        <button
          class="quiet small"
          disabled=${!last || Boolean(column.stop.value) || Boolean(mistake.value)}
          onClick=${() => regenerate([column])}
          aria-label=${`${title}: regenerate`}
        >
          ↻ Regenerate
        </button>
        <button
          class="quiet small"
          disabled=${Boolean(mistake.value) && !last}
          onClick=${() => setCopying(last ?? next(column))}
          aria-label=${`${title}: copy as`}
        >
          Copy as…
        </button>
      </footer>
      ${copying &&
      html`<${Snippet} ...${copying} path=${copying.path} body=${copying.body} title=${`${title} as a request`} onClose=${() => setCopying(null)} />`}
    </section>
  `;
}

/** The request that a run would make. */
function next(column) {
  const asked = turns.value[0];
  return request(column, asked ? [{ role: "user", content: asked }] : [], drawn.value ?? 0);
}

function Answered({ answer, base, label }) {
  const state = answer.state.value;
  const missing = colours.value && answer.body.logprobs === undefined && answer.ended.value;
  return html`
    <div class="answer" data-state=${state} aria-busy=${String(!answer.ended.value)}>
      <${Reasoning} answer=${answer} />
      <${Writing} answer=${answer} base=${base} label=${label} />
      ${state === "waiting" && html`<p class="faint empty">Waiting for the first token…</p>`}
      ${state === "failed" && html`<p class="problem" role="alert">${answer.problem}</p>`}
      ${missing && html`<p class="faint hint">Regenerate it to see its probabilities.</p>`}
      <${Figures} answer=${answer} base=${base} />
    </div>
  `;
}

function Reasoning({ answer }) {
  answer.seen.value;
  if (!answer.reasoning) return null;
  return html`<details class="reasoning"><summary>Reasoning</summary><p>${answer.reasoning}</p></details>`;
}

const ENDS = { length: "cut off at the most tokens", stop: "ended by itself" };

function Figures({ answer }) {
  answer.seen.value;
  const { count, first, speed, finish, adapters } = answer;
  const state = answer.state.value;
  const end = state === "stopped" ? "stopped" : state === "failed" ? "broke off" : (ENDS[finish] ?? finish);
  return html`
    <dl class="figures">
      ${first !== null && html`<${Figure} name="First token" value=${time(first)} />`}
      ${speed !== null && html`<${Figure} name="Speed" value=${`${speed.toFixed(1)} tokens/s`} />`}
      ${count > 0 && html`<${Figure} name="Tokens" value=${count} />`}
      ${answer.ended.value && end && html`<${Figure} name="End" value=${end} />`}
      ${adapters && html`<${Figure} name="Answered by" value=${by(adapters)} />`}
    </dl>
  `;
}

function Figure({ name, value }) {
  return html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
}

function time(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

function by(adapters) {
  if (!adapters.length) return "base";
  return adapters.map(({ name, version, scale }) => `${name}@${version} × ${scale}`).join(" + ");
}
