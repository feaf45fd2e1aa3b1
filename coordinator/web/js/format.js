// Numbers as people read them. The pages are in English, so the numbers are too.

const LANGUAGE = "en";
const whole = new Intl.NumberFormat(LANGUAGE, { maximumFractionDigits: 0 });
const digits = (count) => new Intl.NumberFormat(LANGUAGE, { maximumSignificantDigits: count });
const three = digits(3);
const two = digits(2);
const share = new Intl.NumberFormat(LANGUAGE, { style: "percent", maximumFractionDigits: 0 });
const fineShare = new Intl.NumberFormat(LANGUAGE, { style: "percent", maximumSignificantDigits: 2 });
const unit = (name) =>
  new Intl.NumberFormat(LANGUAGE, { style: "unit", unit: name, unitDisplay: "short", maximumFractionDigits: 0 });
const DURATION = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
  ["second", 1],
].map(([name, seconds]) => [unit(name), seconds]);
const BYTES = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"].map(
  (name) => new Intl.NumberFormat(LANGUAGE, { style: "unit", unit: name, maximumSignificantDigits: 3 }),
);

export const number = (value) => whole.format(value);
export const percent = (fraction) => share.format(fraction);

/** A zoom: two digits below 10 %, whole percents above. */
export const zoom = (fraction) => (fraction < 0.1 ? fineShare : share).format(fraction);

/** Patches a second; patches a minute where that reads better. */
export function rate(perSecond) {
  if (!(perSecond > 0)) return "";
  return perSecond >= 0.5 ? `${two.format(perSecond)} patches/s` : `${two.format(perSecond * 60)} patches/min`;
}

/** The two largest units: `4 min 41 sec`. */
export function duration(seconds) {
  let rest = Math.max(0, Math.round(seconds));
  const first = DURATION.findIndex(([, size]) => rest >= size);
  if (first < 0) return DURATION.at(-1)[0].format(0);
  const parts = [];
  for (const [format, size] of DURATION.slice(first, first + 2)) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count > 0) parts.push(format.format(count));
  }
  return parts.join(" ");
}

export const ago = (seconds) =>
  seconds < 2 ? "just now" : `${duration(seconds < 120 ? seconds : Math.round(seconds / 60) * 60)} ago`;

/** Seconds a task takes. */
export const pace = (seconds) =>
  seconds > 0 ? (seconds < 1 ? `${three.format(seconds * 1000)} ms/task` : `${three.format(seconds)} s/task`) : "";

export function bytes(value) {
  let power = 0;
  while (power < BYTES.length - 1 && value >= 1000 ** (power + 1)) power += 1;
  return power === 0 ? count(value, "byte", "bytes") : BYTES[power].format(value / 1000 ** power);
}

export const size = (width, height) => `${whole.format(width)} × ${whole.format(height)}`;

export function pixels(width, height) {
  const mega = (width * height) / 1e6;
  return mega >= 1000 ? `${three.format(mega / 1000)} gigapixels` : `${three.format(mega)} megapixels`;
}

/** `1 patch`, `2 patches`. */
export const count = (value, one, many) => `${whole.format(value)} ${value === 1 ? one : many}`;
