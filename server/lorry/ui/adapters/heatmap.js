// A picture of where an adapter acts: layers across, modules down, stronger colour for more. It is a grid
// with one tab stop; the arrow keys go through its cells, and the line below says what a cell is.

import { html, useRef, useState } from "../html.js";
import { number, precise } from "./figures.js";

const OUTSIDE = "outside"; // the column of modules that are in no layer

export function HeatMap({ seen }) {
  const [shown, setShown] = useState(seen.measure ? "norm" : "parameters");
  const [at, setAt] = useState(null);
  const { rows, columns, cells } = laid(seen.modules);
  const most = Math.max(...seen.modules.map((one) => one[shown] ?? 0)) || 1;
  const told = at && cells.get(`${at.row} ${at.column}`);
  return html`
    <figure class="heatmap">
      <figcaption class="row">
        <span class="grow">${shown === "norm" ? MEASURES[seen.measure] : "Parameters of each module"}</span>
        ${seen.measure &&
        html`
          <label>
            Show
            <select value=${shown} onChange=${(event) => setShown(event.target.value)}>
              <option value="norm">strength of the change</option>
              <option value="parameters">parameters</option>
            </select>
          </label>
        `}
      </figcaption>
      <${Grid} rows=${rows} columns=${columns} cells=${cells} shown=${shown} most=${most} onAt=${setAt} />
      <div class="row faint note">
        <span>0</span><span class="ramp" aria-hidden="true"></span><span>${figure(most, shown)}</span>
        <span class="grow readout">
          ${at ? `${where(at)}: ${told ? described(told, seen.measure) : "not changed"}` : "Point at a cell, or go to it with the arrow keys."}
        </span>
      </div>
    </figure>
  `;
}

const MEASURES = {
  "||s·B·A||": "Norm of each module's change, ‖s·B·A‖",
  "||l - 1||": "Distance of each module's gains from 1, ‖l − 1‖",
};

/** Returns the parts, the layers, and the modules by `"part layer"`. */
function laid(modules) {
  const rows = [...new Set(modules.map(({ part }) => part))];
  const layers = modules.map(({ layer }) => layer).filter((layer) => layer !== null);
  const columns = layers.length ? Array.from({ length: Math.max(...layers) + 1 }, (_, layer) => layer) : [];
  if (modules.some(({ layer }) => layer === null)) columns.push(OUTSIDE);
  const cells = new Map(modules.map((one) => [`${one.part} ${one.layer ?? OUTSIDE}`, one]));
  return { rows, columns, cells };
}

const figure = (value, shown) => (shown === "norm" ? precise(value) : number(value));

const where = ({ row, column }) => (column === OUTSIDE ? row : `layer ${column}, ${row}`);

function described({ norm, rank, parameters, kinds }, measure) {
  const said = [
    norm !== null && `${measure === "||l - 1||" ? "‖l − 1‖" : "‖s·B·A‖"} ${precise(norm)}`,
    rank && `rank ${rank}`,
    `${number(parameters)} parameters`,
    kinds.join(", "),
  ];
  return said.filter(Boolean).join(" · ");
}

const STEPS = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };

function Grid({ rows, columns, cells, shown, most, onAt }) {
  const [stop, setStop] = useState([0, 0]);
  const table = useRef(null);
  const every = columns.length > 40 ? 5 : 1;
  const go = (event, y, x) => {
    const step = STEPS[event.key];
    if (!step && event.key !== "Home" && event.key !== "End") return;
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const next = step ? [y + step[0], x + step[1]] : [y, event.key === "Home" ? 0 : columns.length - 1];
    const element = table.current.rows[next[0] + 1]?.cells[next[1] + 1];
    if (!element || next[0] < 0 || next[1] < 0) return;
    setStop(next);
    element.focus();
  };
  return html`
    <div class="map-scroller">
      <table role="grid" aria-label="Layers and modules" ref=${table} onPointerLeave=${() => onAt(null)}>
        <thead>
          <tr>
            <th scope="col"><span class="unseen">Module</span></th>
            ${columns.map(
              (column) => html`
                <th scope="col">
                  ${column === OUTSIDE
                    ? html`<span class="unseen">outside the layers</span><span aria-hidden="true">–</span>`
                    : column % every === 0
                      ? column
                      : html`<span class="unseen">${column}</span>`}
                </th>
              `,
            )}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            (row, y) => html`
              <tr>
                <th scope="row">${row}</th>
                ${columns.map((column, x) => {
                  const one = cells.get(`${row} ${column}`);
                  const value = one?.[shown] ?? null;
                  const tell = () => onAt({ row, column });
                  return html`
                    <td
                      class=${one ? (value === null ? "unmeasured" : "measured") : undefined}
                      style=${{ "--share": value === null ? 0 : Math.abs(value) / most }}
                      tabindex=${y === stop[0] && x === stop[1] ? 0 : -1}
                      onPointerEnter=${tell}
                      onFocus=${tell}
                      onKeyDown=${(event) => go(event, y, x)}
                    >
                      <span class="unseen">${one ? (value === null ? "no norm" : figure(value, shown)) : "not changed"}</span>
                    </td>
                  `;
                })}
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}
