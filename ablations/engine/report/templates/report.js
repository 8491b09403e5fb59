"use strict";

/* A click on a column head sorts the table: numbers by value, other cells as text, empty cells last. */
function key(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.value ?? cell.textContent.trim();
  return { empty: text === "" || text === "–", number: Number(text), text };
}

function order(a, b, sign) {
  if (a.empty || b.empty) return a.empty - b.empty;
  const numbers = [a, b].map((one) => !Number.isNaN(one.number));
  if (numbers[0] && numbers[1]) return sign * (a.number - b.number);
  if (numbers[0] || numbers[1]) return sign * (numbers[1] - numbers[0]);
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      rows.sort(([a], [b]) => order(a, b, sign));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

/* Keep the names of rows in view while a table scrolls sideways, if they take less than half of its width. */
function pinRowNames() {
  for (const table of document.querySelectorAll("table.sortable")) {
    const names = [...table.tHead.rows[0].cells].filter((head) => head.classList.contains("name"));
    const widths = names.map((head) => head.offsetWidth);
    const fits = widths.reduce((sum, width) => sum + width, 0) < table.parentElement.clientWidth / 2;
    for (const row of table.rows) {
      let left = 0;
      widths.forEach((width, i) => {
        row.cells[i].style.position = fits ? "sticky" : "";
        row.cells[i].style.left = fits ? `${left}px` : "";
        left += width;
      });
    }
  }
}
addEventListener("resize", pinRowNames);
pinRowNames();

/* Open all details for printing, and close them again afterwards. */
const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  closed.forEach((one) => (one.open = true));
});
addEventListener("afterprint", () => closed.splice(0).forEach((one) => (one.open = false)));
