// The status page: asks its node each second, follows its events, and says so when it does not answer.

import { events, Refused, status, token } from "./api.js";
import { EventLog } from "./events.js";
import { clock, count, lag, rate, span, txid } from "./format.js";
import { byId, setText } from "./dom.js";
import { Plot, Series } from "./plot.js";
import { behind, showNotices, Views } from "./views.js";

const INTERVAL_MS = 1000;
const OLD_MS = 3000;
const LONGEST_STEP_S = 5;
const LONGEST_BACKOFF_MS = 10_000;

const views = new Views();
const log = new EventLog(byId("events-list"), byId("events-state"), byId("events-pause"));
const rates = new Series();
const lags = new Series();
const ratePlot = new Plot(byId("rate-plot"), rates, { smallest: 3, format: rate, title: "Transactions per second" });
const lagPlot = new Plot(byId("lag-plot"), lags, {});

/**
 * `answer`: the last status and when it came (ms, as performance.now()); `trouble`: why there is none since; `looked`:
 * since when somebody looks, and the node is asked.
 */
const state = { answer: null, time: 0, date: null, notices: [], trouble: null, looked: 0, wake: null, stream: null };

/**
 * Transactions per second by database, between two answers of one run of the node, by the node's own clock: how
 * long an answer was on its way does not count. Null if nobody knows; a database that is new has none.
 */
function ratesBetween(before, after) {
  const seconds = after.node.uptime - (before?.node.uptime ?? after.node.uptime);
  // Over a longer time the rate would be a mean that no point of the plot stands for.
  if (before?.node.id !== after.node.id || seconds <= 0 || seconds > LONGEST_STEP_S) return null;
  const earlier = new Map(before.databases.map((one) => [one.name, txid(one.txid)]));
  return new Map(
    after.databases.map(({ name, txid: hex }) => {
      const advance = txid(hex) - (earlier.get(name) ?? txid(hex));
      return [name, Math.max(0, advance) / seconds];
    }),
  );
}

/** What the second plot shows: a replica's lag; of a primary what its furthest replica has not acknowledged. */
const LAGS = {
  replica: { title: "Lag behind the primary", smallest: 0.03, format: lag, value: (answer) => answer.lag },
  primary: {
    title: "Transactions that a replica lacks",
    smallest: 3,
    format: count,
    value: ({ databases, replicas }) =>
      replicas.length ? Math.max(...replicas.map((replica) => behind(databases, replica))) : null,
  },
};

function showLag(answer, now) {
  const kind = answer.node.role === "primary" ? LAGS.primary : LAGS.replica;
  if (lagPlot.title !== kind.title) {
    lags.points.length = 0;
    Object.assign(lagPlot, kind);
  }
  const value = kind.value(answer);
  lags.add(now, value);
  setText(byId("lag-title"), kind.title);
  setText(byId("lag-now"), value === null ? "–" : kind.format(value));
}

function take(answer) {
  const now = performance.now();
  const byName = ratesBetween(state.answer, answer);
  // While nobody looked nothing was asked.
  if (now - state.time > LONGEST_STEP_S * 1000) lags.add(now, null);
  Object.assign(state, { answer, time: now, date: new Date(), trouble: null });
  state.notices = views.show(answer, byName ?? new Map());
  const total = byName && [...byName.values()].reduce((sum, one) => sum + one, 0);
  rates.add(now, total);
  setText(byId("rate-now"), total === null ? "–" : rate(total));
  showLag(answer, now);
  for (const id of ["content", "role", "about"]) byId(id).hidden = false;
}

function fail(error) {
  state.trouble = error;
  const now = performance.now();
  if (state.answer) {
    rates.add(now, null);
    lags.add(now, null);
  }
  if (error instanceof Refused && error.status === 401) askForToken();
}

/** What the page says of the connection: nothing while all is well. */
function connection(age) {
  const { trouble, date } = state;
  const since = state.answer ? ` What is shown is of ${clock(date)}, ${span(age / 1000)} ago.` : "";
  if (trouble instanceof Refused && trouble.status === 401) return null;
  if (trouble instanceof Refused) {
    return { level: "bad", text: `The node answers with an error (${trouble.status}: ${trouble.message}).${since}` };
  }
  const asked = performance.now() - state.looked;
  if (trouble || (state.answer && Math.min(age, asked) > OLD_MS)) return { level: "bad", text: `The node does not answer.${since}` };
  return null;
}

function showFreshness() {
  if (document.hidden) return; // nothing is asked: that there is no answer means nothing
  const age = performance.now() - state.time;
  const notice = connection(age);
  const old = state.answer !== null && (notice !== null || age > OLD_MS);
  document.body.classList.toggle("old", old);
  const freshness = byId("freshness");
  freshness.dataset.state = notice ? "bad" : state.answer && !old ? "live" : "waiting";
  if (notice) setText(freshness, state.answer ? `no answer for ${span(age / 1000)}` : "no answer");
  else if (old) setText(freshness, `of ${clock(state.date)}, asking again`);
  else if (state.answer) setText(freshness, `live, ${clock(state.date)}`);
  else setText(freshness, byId("token-form").hidden ? "waiting for an answer" : "waiting for a token");
  showNotices(notice ? [notice, ...state.notices] : state.notices);
  const name = state.answer?.node.hostname;
  document.title = `${notice ? "No answer: " : ""}${name ? `${name} – ` : ""}LiteFS`;
  ratePlot.render(performance.now());
  lagPlot.render(performance.now());
}

function askForToken() {
  const form = byId("token-form");
  stopEvents();
  if (token.get()) setText(byId("token-message"), "This node does not accept that token. Compare it with http.auth-token and http.tokens.");
  token.forget();
  for (const id of ["content", "role", "about", "forget"]) byId(id).hidden = true;
  setText(byId("hostname"), "this node");
  Object.assign(state, { answer: null, notices: [] });
  byId("token-plain").hidden = window.isSecureContext;
  if (form.hidden) {
    form.hidden = false;
    byId("token").focus();
  }
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value.trim());
  byId("token").value = "";
  byId("token-form").hidden = true;
  state.wake?.();
});

byId("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});

/** Until `ms` have passed or somebody calls `state.wake`. */
function pause(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    state.wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

async function poll() {
  for (;;) {
    const began = performance.now();
    // Without anybody who looks, or without a token, nothing is asked.
    if (!document.hidden && byId("token-form").hidden) {
      try {
        take(await status());
        byId("forget").hidden = !token.get();
        followEvents();
      } catch (error) {
        fail(error);
      }
      showFreshness();
    }
    await pause(Math.max(0, INTERVAL_MS - (performance.now() - began)));
  }
}

function stopEvents() {
  state.stream?.abort();
  state.stream = null;
}

/** Follow the events unless somebody does already; a stream that ends is asked for again, ever more slowly. */
async function followEvents() {
  if (state.stream) return;
  const stream = (state.stream = new AbortController());
  for (let wait = INTERVAL_MS; state.stream === stream; wait = Math.min(2 * wait, LONGEST_BACKOFF_MS)) {
    const opened = () => {
      wait = INTERVAL_MS;
      log.say("live");
    };
    try {
      await events(stream.signal, opened, (event) => log.add(event));
      log.say("interrupted");
    } catch {
      if (stream.signal.aborted) return;
      log.say("interrupted");
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

document.addEventListener("visibilitychange", () => {
  // A browser opens six connections to a node at most: tabs that nobody looks at keep none of them.
  if (document.hidden) return stopEvents();
  state.looked = performance.now();
  showFreshness();
  state.wake?.();
});

setInterval(showFreshness, INTERVAL_MS);
poll();
