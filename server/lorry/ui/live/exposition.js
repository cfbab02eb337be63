// Prometheus' text format, as far as `/metrics` uses it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/** Returns a Map of name -> list of `{ labels, value }`. */
export function parsed(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const match = LINE.exec(line);
    if (!match) continue;
    const [, name, labels = "", value] = match;
    if (!series.has(name)) series.set(name, []);
    series.get(name).push({ labels: labelsOf(labels), value: number(value) });
  }
  return series;
}

function labelsOf(text) {
  const found = {};
  for (const [, name, value] of text.matchAll(LABEL)) {
    found[name] = value.replace(/\\(.)/g, (_, one) => (one === "n" ? "\n" : one));
  }
  return found;
}

function number(text) {
  return { "+Inf": Infinity, "-Inf": -Infinity, NaN }[text] ?? Number(text);
}

/** Returns the sum of a name's values whose labels fit, or null if there are none. */
export function sum(series, name, labels = {}) {
  const fits = (series.get(name) ?? []).filter(({ labels: own }) =>
    Object.entries(labels).every(([label, value]) => own[label] === value),
  );
  return fits.length ? fits.reduce((total, { value }) => total + value, 0) : null;
}

/** Returns the cumulative counts of a histogram's buckets as `[[bound, count], …]`, ascending. */
export function buckets(series, name, labels = {}) {
  const counts = new Map();
  for (const { labels: own, value } of series.get(`${name}_bucket`) ?? []) {
    if (Object.entries(labels).some(([label, wanted]) => own[label] !== wanted)) continue;
    const bound = number(own.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return [...counts].sort(([a], [b]) => a - b);
}

/** Returns a quantile of what came between two readings of a histogram, or null if nothing did.
 *  Within a bucket values are taken as evenly spread, as PromQL's histogram_quantile does. */
export function quantile(q, now, before = []) {
  const earlier = new Map(before);
  const grown = now.map(([bound, count]) => [bound, count - (earlier.get(bound) ?? 0)]);
  const total = grown.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  const rank = q * total;
  let [lower, below] = [0, 0];
  for (const [bound, count] of grown) {
    if (count >= rank) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (rank - below)) / (count - below || 1);
    }
    [lower, below] = [bound, count];
  }
  return lower;
}
