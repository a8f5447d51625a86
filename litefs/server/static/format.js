// Figures as text. Numbers are written the same way in every locale, as `litefs status` writes them.

const whole = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function count(value) {
  return whole.format(value);
}

/** A number of `noun`: "1 node", "3 nodes". */
export function several(value, noun) {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** A rate: one decimal below ten, so that a slow writer does not read as nothing. */
export function rate(value) {
  return value > 0 && value < 9.95 ? value.toFixed(1) : count(value);
}

export function bytes(value) {
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 10 ? value.toFixed(1) : whole.format(value)} ${UNITS[unit]}`;
}

/** A short time in seconds, as a lag is. */
export function lag(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 60 ? `${seconds.toFixed(1)} s` : span(seconds);
}

/** A long time in seconds: its two largest units. */
export function span(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(date) {
  return date.toTimeString().slice(0, 8);
}

/** A TXID of 16 hex digits as a number; they stay far below 2^53. */
export function txid(hex) {
  return Number.parseInt(hex, 16);
}
