// Building and updating elements; text only ever enters the page as text.

/** A new element with attributes (`true`: without a value, `false` and null: not there) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Set the text of an element unless it is that already: untouched elements are neither drawn nor read out again. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/**
 * A table whose rows are kept by key, sorted by a click on a column's head.
 *
 * A column is `{ id, title, cell, sort?, className?, start? }`: `cell(row)` gives text or an element, `sort(row)` a
 * number or text to sort by (none: not sortable), `start` "descending" if its largest values come first.
 */
export class Table {
  constructor(table, caption, columns, sortedBy) {
    this.columns = columns;
    this.sorted = { id: sortedBy, descending: false };
    this.rows = new Map();
    this.last = [];
    const head = element("tr");
    for (const column of columns) {
      const cell = element("th", { scope: "col", class: column.className });
      if (column.sort) {
        const button = element("button", { type: "button" }, column.title);
        button.addEventListener("click", () => this.sortBy(column));
        cell.append(button);
      } else {
        cell.append(column.title);
      }
      column.head = cell;
      head.append(cell);
    }
    this.body = element("tbody");
    table.append(element("caption", { class: "hidden" }, caption), element("thead", {}, head), this.body);
  }

  sortBy(column) {
    const again = this.sorted.id === column.id;
    this.sorted = { id: column.id, descending: again ? !this.sorted.descending : column.start === "descending" };
    this.show(this.last);
  }

  /** Show these rows, each `{ key, className?, … }`, and no others. */
  show(rows) {
    this.last = rows;
    const keys = new Set(rows.map((row) => row.key));
    for (const [key, shown] of this.rows) {
      if (!keys.has(key)) {
        shown.remove();
        this.rows.delete(key);
      }
    }
    let place = this.body.firstElementChild;
    for (const row of this.inOrder(rows)) {
      const shown = this.update(row);
      if (shown === place) place = place.nextElementSibling;
      else this.body.insertBefore(shown, place);
    }
  }

  inOrder(rows) {
    const column = this.columns.find((one) => one.id === this.sorted.id);
    for (const one of this.columns) {
      if (one !== column) one.head.removeAttribute("aria-sort");
    }
    if (!column) return rows;
    const sign = this.sorted.descending ? -1 : 1;
    const order = sign < 0 ? "descending" : "ascending";
    if (column.head.ariaSort !== order) column.head.setAttribute("aria-sort", order);
    return rows
      .map((row) => [column.sort(row), row])
      .sort(([one, a], [other, b]) => (one < other ? -sign : one > other ? sign : a.key < b.key ? -1 : 1))
      .map(([, row]) => row);
  }

  update(row) {
    let shown = this.rows.get(row.key);
    if (!shown) {
      const cells = this.columns.map((column, index) =>
        element(index ? "td" : "th", { class: column.className, scope: index ? null : "row" }),
      );
      shown = element("tr", {}, ...cells);
      this.rows.set(row.key, shown);
    }
    if (shown.className !== (row.className ?? "")) shown.className = row.className ?? "";
    this.columns.forEach((column, index) => {
      const content = column.cell(row);
      const cell = shown.children[index];
      if (typeof content === "string") setText(cell, content);
      else if (!cell.firstChild?.isEqualNode(content)) cell.replaceChildren(content);
    });
    return shown;
  }
}
