// Numbers and times as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? value.toFixed(value < 10 ? 1 : 0) : value} ${UNITS[unit]}`;
}

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

/** 1,204 in full. */
export const number = (value) => WHOLE.format(value);

/** 1.2K, for a narrow column. */
export const short = (value) => SHORT.format(value);

/** Four digits are enough for a norm or a scale. */
export const precise = (value) => String(Number(value.toPrecision(4)));

export function percent(share) {
  return `${Number((share * 100).toPrecision(2))} %`;
}

const MOMENT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });

/** A time of the server, in the user's zone. */
export const moment = (text) => MOMENT.format(new Date(text));

/** The beginning of a digest, which is enough to tell two apart. */
export const brief = (digest) => digest.replace(/^sha256:/, "").slice(0, 12);
