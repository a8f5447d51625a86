// Events as they happen. Transactions come by the thousand, so those of a database within five seconds are one line.

import { clock, several } from "./format.js";
import { element, setText } from "./dom.js";

const KEPT = 200;
const TOGETHER_MS = 5000;
const RENDER_MS = 250;
const LONGEST_TEXT = 300;

/** A TXID without the leading zeros of its 16 digits. */
function shortened(hex) {
  return hex.replace(/^0+(?=.)/, "");
}

function primary(data) {
  if (data.isPrimary) return "this node is the primary";
  return data.hostname ? `the primary is ${data.hostname}` : "there is no primary";
}

/** Any event that this page knows nothing special of: its data, in a line. */
function plain(data) {
  const parts = Object.entries(data ?? {}).map(
    ([key, value]) => `${key} ${typeof value === "object" ? JSON.stringify(value) : value}`,
  );
  return parts.join(", ").slice(0, LONGEST_TEXT);
}

const REASONS = {
  diverged: "transactions that the primary never had",
  damaged: "damaged files",
  replaced: "files that something else took the place of",
};

const TEXTS = {
  init: (data) => `connected; ${primary(data)}`,
  primaryChange: primary,
  snapshot: (data) => `put in place whole, TXID ${shortened(data.txID)}`,
  drop: () => "removed",
  lost: (data) => `${REASONS[data.reason] ?? data.reason} set aside in ${data.directory} of the data directory`,
  end: (data) => `the stream ends: ${data.reason}`,
};

export class EventLog {
  constructor(list, state, pause) {
    Object.assign(this, { list, state, entries: [], open: new Map(), scheduled: 0, status: "" });
    Object.assign(this, { paused: false, unseen: 0 });
    pause.addEventListener("click", () => {
      this.paused = !this.paused;
      setText(pause, this.paused ? "Go on" : "Pause");
      this.unseen = 0;
      this.schedule();
    });
  }

  /** Where the stream stands, in words. */
  say(status) {
    this.status = status;
    this.schedule();
  }

  add(event) {
    const now = Date.now();
    this.unseen += 1;
    if (event.type === "tx") {
      this.transaction(event, now);
    } else {
      this.open.clear();
      const text = (TEXTS[event.type] ?? plain)(event.data ?? {});
      this.push({ time: now, kind: event.type, database: event.db ?? "", text });
    }
    this.schedule();
  }

  transaction(event, now) {
    let entry = this.open.get(event.db);
    if (!entry || now - entry.began > TOGETHER_MS) {
      entry = { began: now, kind: "tx", database: event.db, transactions: 0 };
      this.open.set(event.db, entry);
      this.push(entry);
    }
    entry.time = now;
    entry.transactions += 1;
    const text = `${several(entry.transactions, "transaction")}, TXID ${shortened(event.data.txID)}`;
    Object.assign(entry, { text, shown: null });
  }

  push(entry) {
    this.entries.unshift(entry);
    this.entries.length = Math.min(this.entries.length, KEPT);
  }

  schedule() {
    this.scheduled ||= setTimeout(() => this.render(), RENDER_MS);
  }

  render() {
    this.scheduled = 0;
    setText(this.state, this.paused ? `paused, ${several(this.unseen, "event")} since` : this.status);
    if (this.paused) return;
    for (const entry of this.entries) {
      entry.shown ??= element(
        "li",
        { class: `event ${entry.kind}` },
        element("time", {}, clock(new Date(entry.time))),
        element("span", { class: "kind" }, entry.kind),
        element("span", { class: "text" }, entry.database ? `${entry.database}: ${entry.text}` : entry.text),
      );
    }
    this.list.replaceChildren(...this.entries.map((entry) => entry.shown));
  }
}
