// What the page says of a status: notices, figures, the tables of nodes and databases.

import { bytes, count, lag, rate, several, span, txid } from "./format.js";
import { byId, element, setText, Table } from "./dom.js";

const ROLES = { primary: "Primary", replica: "Replica", promoting: "Becoming primary", demoting: "Becoming a replica" };

/** What is wrong or in question, most urgent first: `{ level: "bad" | "warn", text }`. */
function problems(status) {
  const found = [];
  const { node, primary, databases, heldUp = [] } = status;
  const damaged = databases.filter((one) => one.damaged).map((one) => one.name);
  if (damaged.length) {
    const names = damaged.slice(0, 5).join(", ") + (damaged.length > 5 ? ", …" : "");
    const which = damaged.length === 1 ? "is a damaged database" : "are damaged databases";
    found.push({ level: "bad", text: `There ${which}, served for reading only: ${names}. The log of the node says what to do.` });
  }
  const alone = node.role === "replica" && !primary?.connected;
  if (alone) {
    const who = primary ? `its primary, ${primary.hostname}` : "a primary";
    const next = node.candidate ? "It becomes primary itself if it may." : "It keeps trying, and is no candidate itself.";
    found.push({ level: "bad", text: `This replica is not connected to ${who}: its data grow old. ${next}` });
  }
  if (heldUp.length) {
    found.push({ level: "warn", text: `This node gives its role up and is held up by ${heldUp.join("; ")}.` });
  }
  if (!node.ready && !alone) {
    found.push({ level: "warn", text: "This node is not ready yet: its role changes, or it is still catching up." });
  }
  return found;
}

/** Show notices, `{ level, text }`, and leave alone those that are there already. */
export function showNotices(notices) {
  const place = byId("notices");
  const wanted = notices.map(({ level, text }) => element("p", { class: `notice ${level}` }, text));
  const same = wanted.length === place.children.length && wanted.every((one, i) => one.isEqualNode(place.children[i]));
  if (!same) place.replaceChildren(...wanted);
}

/** Whether a replica is sent a database: `lease.databases` and tokens may leave some out. */
function takes(replica, database) {
  return Object.hasOwn(replica.databases, database.name);
}

/** How many transactions of these databases a replica has not acknowledged. */
export function behind(databases, replica) {
  const lacks = (one) => (takes(replica, one) ? Math.max(0, txid(one.txid) - txid(replica.databases[one.name])) : 0);
  return databases.reduce((sum, one) => sum + lacks(one), 0);
}

function nodeRows(status) {
  const { node, primary, databases, replicas } = status;
  const { id, hostname, candidate } = node;
  const leads = node.role === "primary";
  const own = { key: id, own: true, id, hostname, candidate, role: ROLES[node.role] ?? node.role };
  const ready = node.ready ? "ready" : "not ready";
  const rows = [{ ...own, state: leads || status.lag === null ? ready : `${ready}, ${lag(status.lag)} behind` }];
  if (!leads && primary) {
    const state = primary.connected ? "connected" : "not connected";
    rows.push({ key: "primary", hostname: primary.hostname, url: primary.url, role: "Primary", state });
  }
  for (const replica of replicas) {
    const lacks = behind(databases, replica);
    rows.push({
      key: replica.id,
      hostname: replica.hostname,
      id: replica.id,
      role: "Replica",
      candidate: replica.candidate,
      inSync: replica.inSync,
      state: lacks ? `${several(lacks, "transaction")} behind` : "up to date",
    });
  }
  return rows;
}

function yesNo(value) {
  if (value === undefined) return "–";
  return value ? "yes" : "no";
}

function nodeName(row) {
  const name = row.hostname || "(no name)";
  if (row.own) return element("span", {}, name, element("span", { class: "note" }, " this node"));
  const linked = /^https?:\/\//.test(row.url ?? "");
  return linked ? element("a", { href: `${row.url.replace(/\/$/, "")}/`, rel: "noreferrer" }, name) : name;
}

/** The 16 digits of a TXID, its leading zeros apart: they only keep the columns in line. */
function digits(hex) {
  const zeros = hex.match(/^0*/)[0].slice(0, 15);
  return element("span", { class: "hex" }, element("span", { class: "zeros" }, zeros), hex.slice(zeros.length));
}

const SYNC = { off: "off", any: "any replica" };

function syncText(sync) {
  return SYNC[sync] ?? several(sync, "replica");
}

function stateOf(row) {
  if (row.damaged) return "damaged";
  if (row.replicas.length) {
    const taking = row.replicas.filter((replica) => takes(replica, row));
    if (!taking.length) return "on no replica";
    const lacks = Math.max(...taking.map((replica) => behind([row], replica)));
    if (lacks) return `${count(lacks)} not on all replicas`;
    return taking.length < row.replicas.length ? `on ${several(taking.length, "replica")}` : "on all replicas";
  }
  return row.lag === undefined ? "ok" : `applied after ${lag(row.lag)}`;
}

export class Views {
  constructor() {
    this.nodes = new Table(byId("nodes"), "Nodes of the cluster that this one knows of", [
      { id: "name", title: "Host", cell: nodeName },
      { id: "role", title: "Role", cell: (row) => row.role },
      { id: "state", title: "State", cell: (row) => row.state },
      { id: "candidate", title: "Candidate", className: "wide", cell: (row) => yesNo(row.candidate) },
      { id: "sync", title: "In sync", className: "wide", cell: (row) => yesNo(row.inSync) },
      { id: "id", title: "Node id", className: "wide hex", cell: (row) => row.id ?? "–" },
    ]);
    const number = { start: "descending", className: "number wide" };
    this.databases = new Table(
      byId("databases-table"),
      "Databases of this node",
      [
        { id: "name", title: "Name", cell: (row) => row.name, sort: (row) => row.name },
        { id: "txid", title: "TXID", className: "number", start: "descending", cell: (row) => digits(row.txid), sort: (row) => txid(row.txid) },
        { id: "rate", title: "Tx/s", className: "number", start: "descending", cell: (row) => rate(row.rate), sort: (row) => row.rate },
        { id: "state", title: "State", cell: stateOf, sort: stateOf },
        { id: "size", title: "Size", ...number, cell: (row) => bytes(row.size), sort: (row) => row.size },
        { id: "page", title: "Page", ...number, className: "number widest", cell: (row) => count(row.pageSize), sort: (row) => row.pageSize },
        { id: "log", title: "Log", ...number, cell: (row) => bytes(row.logBytes), sort: (row) => row.logBytes },
        { id: "sync", title: "Sync", className: "wide", cell: (row) => syncText(row.sync), sort: (row) => syncText(row.sync) },
        { id: "checksum", title: "Checksum", className: "widest hex", cell: (row) => row.checksum },
      ],
      "name",
    );
    byId("filter").addEventListener("input", () => this.showDatabases());
    this.rows = [];
  }

  /** Show a status; `rates`: transactions per second by database. Returns the notices that it calls for. */
  show(status, rates) {
    const { node, databases } = status;
    setText(byId("hostname"), node.hostname);
    setText(byId("role"), ROLES[node.role] ?? node.role);
    byId("role").className = `badge ${node.role}`;
    const lease = `${node.lease} lease` + (node.term ? `, term ${count(node.term)}` : "");
    const parts = [`LiteFS ${node.version}`, `up ${span(node.uptime)}`, lease, node.path, node.clusterID];
    setText(byId("about"), parts.filter(Boolean).join(" · "));
    this.figures(status);
    this.nodes.show(nodeRows(status));
    this.rows = databases.map((one) => ({
      ...one,
      key: one.name,
      className: one.damaged ? "bad" : "",
      size: one.pages * one.pageSize,
      rate: rates.get(one.name) ?? 0,
      replicas: status.replicas,
    }));
    this.showDatabases();
    return problems(status);
  }

  figures(status) {
    const { node, primary, databases, replicas } = status;
    const total = (of) => databases.reduce((sum, one) => sum + of(one), 0);
    const shown = {
      Primary: node.role === "primary" ? "this node" : (primary?.hostname ?? "none"),
      Databases: count(databases.length),
      Data: bytes(total((one) => one.pages * one.pageSize)),
      Log: bytes(total((one) => one.logBytes)),
    };
    if (node.role === "primary") {
      shown.Replicas = count(replicas.length);
      if (databases.some((one) => one.sync !== "off")) shown["In sync"] = count(replicas.filter((one) => one.inSync).length);
    }
    const place = byId("figures");
    const wanted = Object.entries(shown).map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text)));
    wanted.forEach((one, index) => {
      const there = place.children[index];
      if (!there) place.append(one);
      else if (!there.isEqualNode(one)) there.replaceWith(one);
    });
    while (place.children.length > wanted.length) place.lastElementChild.remove();
  }

  showDatabases() {
    const wanted = byId("filter").value.trim().toLowerCase();
    const found = this.rows.filter((row) => row.name.toLowerCase().includes(wanted));
    this.databases.show(found);
    setText(byId("databases-count"), wanted ? `${count(found.length)} of ${count(this.rows.length)}` : count(this.rows.length));
    const none = byId("databases-none");
    none.hidden = found.length > 0;
    setText(none, this.rows.length ? "No name contains that." : "No database yet: create one on the mount of the primary.");
  }
}
