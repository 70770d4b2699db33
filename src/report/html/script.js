"use strict";
// Tables are whole without this: it makes their headers sort them, and adds a field that filters their rows.
for (const table of document.querySelectorAll("table[data-what]")) {
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);
  const rows = Array.from(body.rows);
  if (rows.length < 2) continue;

  const key = (row, column, isNumber) => {
    const cell = row.cells[column];
    if (!isNumber && cell.dataset.v === undefined) return cell.textContent;
    const number = parseFloat(cell.dataset.v === undefined ? cell.textContent : cell.dataset.v);
    return Number.isNaN(number) ? Infinity : number;
  };
  const order = new Intl.Collator("en", { numeric: true });
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const keyed = rows.map((row) => [key(row, column, header.className === "n"), row]);
      keyed.sort(([a], [b]) => direction * (typeof a === "string" ? order.compare(a, b) : a < b ? -1 : a > b ? 1 : 0));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      body.append(...keyed.map(([, row]) => row));
    });
  });

  const what = table.dataset.what;
  const tools = document.createElement("p");
  tools.className = "tools";
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "filter " + what;
  field.setAttribute("aria-label", "filter " + what);
  const count = document.createElement("output");
  count.textContent = rows.length + " " + what;
  tools.append(field, count);
  table.parentElement.before(tools);
  let texts = null;
  field.addEventListener("input", () => {
    texts = texts || rows.map((row) => row.textContent.toLowerCase());
    const words = field.value.toLowerCase().split(" ").filter((word) => word !== "");
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !words.every((word) => texts[i].includes(word));
      if (!row.hidden) shown += 1;
    });
    count.textContent = (shown === rows.length ? "" : shown + " of ") + rows.length + " " + what;
  });
}
