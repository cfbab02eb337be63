// What an adapter's files tell: where it acts, how large it is beside the base, and the words it brings.

import { html, useEffect, useState } from "../html.js";
import { Listing } from "../listing.js";
import { ask } from "../server.js";
import { Refusal } from "./action.js";
import { number, percent, precise } from "./figures.js";
import { HeatMap } from "./heatmap.js";
import { pathOf } from "./records.js";

/** Returns `{ found, error }`: the record with its `inspection`, read again for each new content. */
function useInspection(record) {
  const [state, setState] = useState({});
  useEffect(() => {
    let wanted = true;
    setState({});
    ask("GET", `${pathOf(record.name)}?inspect=true`)
      .then((found) => wanted && setState({ found }))
      .catch((error) => wanted && setState({ error }));
    return () => (wanted = false);
  }, [record.name, record.digest, record.broken]);
  return state;
}

export function Inspection({ record }) {
  const { found, error } = useInspection(record);
  if (error) {
    return html`
      <section class="card wide-panel">
        <h2>Where it acts</h2>
        <${Refusal} error=${error} />
      </section>
    `;
  }
  if (!found) return html`<section class="card wide-panel"><p class="faint note" role="status">Reading its files…</p></section>`;
  return html`
    <${Acts} record=${found} seen=${found.inspection} />
    <${Brings} record=${found} seen=${found.inspection} />
  `;
}

const ACTS = { true: "yes", false: "no, every answer is the base's", null: "the files alone do not tell" };

function Acts({ record, seen }) {
  const facts = [
    ["Method", [seen.method, ...seen.variants].join(", ")],
    ["Parameters", `${number(record.parameters)}, ${percent(seen.share)} of the base's`],
    ["Numbers", seen.dtypes.join(", ")],
    ["Has an effect", `${ACTS[seen.acts]} (${seen.why})`],
    ["Trained for", [record.base_model ?? "not said", seen.revision].filter(Boolean).join(", revision ")],
    seen.trained_with && ["Trained with", `PEFT ${seen.trained_with}`],
    seen.initialisation && ["Started from", seen.initialisation],
  ].filter(Boolean);
  return html`
    <section class="card wide-panel inspection">
      <h2>Where it acts</h2>
      <dl class="facts">${facts.map(([title, value]) => html`<dt>${title}</dt><dd>${value}</dd>`)}</dl>
      ${record.virtual_tokens === 0 && html`<${HeatMap} seen=${seen} /><${ByModule} modules=${seen.modules} />`}
    </section>
  `;
}

const NUMBERS = ["Times", "Rank", "Strength", "Parameters", "Norm"].map((title) => ({ title, number: true }));
const COLUMNS = ["Module", "Tensors", ...NUMBERS];

/** The same figures as a table: a row for each module of a layer, all layers together. */
function ByModule({ modules }) {
  const groups = new Map();
  for (const one of modules) groups.set(one.part, [...(groups.get(one.part) ?? []), one]);
  const range = (values) => {
    const known = values.filter((value) => value !== null);
    const [least, most] = [Math.min(...known), Math.max(...known)].map(precise);
    if (!known.length) return html`<span class="faint">–</span>`;
    return least === most ? least : `${least} to ${most}`;
  };
  return html`
    <details>
      <summary>Figures by module</summary>
      <${Listing} label="Table of modules" columns=${COLUMNS}>
        ${[...groups].map(
          ([part, mine]) => html`
            <tr key=${part}>
              <th scope="row"><code>${part}</code></th>
              <td>${[...new Set(mine.flatMap(({ kinds }) => kinds))].join(", ")}</td>
              <td class="number">${number(mine.length)}</td>
              <td class="number">${range(mine.map(({ rank }) => rank))}</td>
              <td class="number">${range(mine.map(({ strength }) => strength))}</td>
              <td class="number">${number(mine.reduce((sum, { parameters }) => sum + parameters, 0))}</td>
              <td class="number">${range(mine.map(({ norm }) => norm))}</td>
            </tr>
          `,
        )}
      <//>
    </details>
  `;
}

function Brings({ record, seen }) {
  const lists = [
    ["Labels", seen.labels],
    ["End tokens", seen.end_tokens],
    ["Added tokens", seen.added_tokens],
    ["Sampling", Object.entries(seen.generation).map(([name, value]) => `${name} ${precise(value)}`)],
    ["Not used", record.words_left_out ?? []],
  ].filter(([, texts]) => texts.length);
  const templates = Object.entries(seen.chat_templates);
  if (!lists.length && !templates.length) return null;
  return html`
    <section class="card wide-panel brings">
      <h2>What it brings</h2>
      <dl class="facts">
        ${lists.map(
          ([title, texts]) => html`
            <dt>${title}</dt>
            <dd><ul class="texts">${texts.map((text) => html`<li>${text}</li>`)}</ul></dd>
          `,
        )}
      </dl>
      ${templates.map(
        ([name, text]) => html`
          <details key=${name}>
            <summary>${name === "default" ? "Its chat template" : `Its chat template “${name}”`}</summary>
            <pre tabindex="0">${text}</pre>
          </details>
        `,
      )}
    </section>
  `;
}
