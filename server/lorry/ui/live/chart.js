// A line chart of uPlot's in the page's colours, which says its last values to who cannot see it.

import { html, useEffect, useId, useRef } from "../html.js";
import { shown as colours } from "../theme.js";
import uPlot from "../vendor/uplot.js";

const HEIGHT = 160; // pixels

/** `times`: seconds. `lines`: `[{ label, values }]`. `shown(value)`: a value as text. */
export function Chart({ title, note, times, lines, shown, most }) {
  const box = useRef(null);
  const plot = useRef(null);
  const id = useId();
  const data = [times, ...lines.map(({ values }) => values)];

  useEffect(() => {
    const element = box.current;
    const made = new uPlot(options(element, lines, shown, most), data, element);
    plot.current = made;
    const fit = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    fit.observe(element);
    return () => {
      fit.disconnect();
      made.destroy();
    };
    // A line more, or other colours: another chart.
  }, [colours.value, lines.map(({ label }) => label).join()]);

  useEffect(() => plot.current?.setData(data), [times]);

  const said = lines.map(({ label, values }) => `${label} ${text(values.at(-1), shown)}`).join(", ");
  return html`
    <section class="chart card" aria-labelledby=${id}>
      <h2 id=${id}>${title}</h2>
      <ul class="legend">
        ${lines.map(
          ({ label, values }, index) => html`
            <li class=${`series-${index + 1}`}>
              ${label}<span class="value">${text(values.at(-1), shown)}</span>
            </li>
          `,
        )}
      </ul>
      <div ref=${box} class="plot" role="img" aria-label=${`${title}, now: ${said}`}></div>
      ${note && html`<p class="faint">${note}</p>`}
    </section>
  `;
}

function text(value, shown) {
  return value == null ? "–" : shown(value);
}

function options(box, lines, shown, most) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { y: false, points: { size: 6 } },
    scales: { y: { range: (plot, low, high) => [0, most ?? (high > 0 ? high * 1.1 : 1)] } },
    axes: [
      { ...axis, size: 28, space: 90, values: (plot, at) => at.map(clock) },
      { ...axis, size: 62, space: 34, values: (plot, at) => at.map((value) => shown(value)) },
    ],
    series: [
      {},
      ...lines.map(({ label }, index) => ({
        label,
        stroke: colour(`--series-${index + 1}`),
        width: 1.75,
        points: { show: false },
      })),
    ],
  };
}

function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });
}
