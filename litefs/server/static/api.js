// What the page asks of its node: GET /status and the stream of GET /events.

const KEY = "litefs.token";
const PATIENCE_MS = 3000;
const SILENCE_MS = 12_000; // an empty line comes every 5 s, so a connection that is silent for longer is dead

/** An answer that is none: `status` is that of HTTP. */
export class Refused extends Error {
  constructor(status, text) {
    super(text || `status ${status}`);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function ask(path, signal) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  const response = await fetch(path, { headers, signal, cache: "no-store", redirect: "error" });
  if (!response.ok) throw new Refused(response.status, (await response.text()).trim().slice(0, 200));
  return response;
}

/** The node's status. Throws Refused, or another error if there is no answer within PATIENCE_MS. */
export async function status() {
  const response = await ask("status", AbortSignal.timeout(PATIENCE_MS));
  return response.json();
}

/** Calls `onEvent` with each event until the stream ends or `signal` aborts it. Throws as fetch does, and Refused. */
export async function events(signal, onOpen, onEvent) {
  const response = await ask("events", signal);
  onOpen();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const silence = setTimeout(() => reader.cancel(), SILENCE_MS);
    const { done, value } = await reader.read().finally(() => clearTimeout(silence));
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line) onEvent(JSON.parse(line));
    }
  }
}
