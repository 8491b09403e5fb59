"use strict";

/* MLflow shows the page in a frame that allows scripts only: no download, no new tab, and no link, not even within the page. */
const framed = window.parent !== window;
const sandboxed = window.origin === "null" && location.protocol !== "file:";
document.documentElement.classList.toggle("sandboxed", sandboxed);

for (const link of framed ? document.querySelectorAll('a[href^="#"]') : []) {
  link.addEventListener("click", (event) => {
    const target = document.getElementById(link.getAttribute("href").slice(1));
    event.preventDefault();
    target.scrollIntoView();
    target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
}

/* Show the address of a file where it cannot be opened. */
function showAddress(link) {
  const shown = document.createElement("code");
  shown.className = "address";
  shown.textContent = link.href;
  if (link.nextElementSibling?.className !== "address") link.after(shown);
  getSelection().selectAllChildren(link.nextElementSibling);
}

/* Links to the files beside the page. A frame of MLflow's names the server in its address, as the reader reaches it; a page without
   an address of its own, as in a notebook, has no files beside it. */
const server = location.protocol === "blob:" ? new URL(location.href).origin : "null";
const placed = /^(file|https?):$/.test(location.protocol);
for (const link of document.querySelectorAll("a.file")) {
  if (server !== "null" && link.dataset.page) link.href = `${server}/${link.dataset.page}`;
  if (!/^https?:/.test(link.getAttribute("href"))) {
    if (!placed) link.replaceWith(link.textContent);
  } else if (sandboxed) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const tab = window.open(link.href, "_blank");
      if (tab) tab.opener = null;
      else showAddress(link);
    });
  }
}
for (const files of document.querySelectorAll(".files")) files.hidden = !files.querySelector("a");

for (const button of document.querySelectorAll("button.copy")) {
  const file = button.closest("details");
  const [text, told] = [file.querySelector("textarea"), file.querySelector("[role=status]")];
  button.hidden = false;
  button.addEventListener("click", () => {
    text.focus();
    text.select();
    const copied = document.execCommand("copy");  // navigator.clipboard needs a permission that a frame may lack
    told.textContent = copied ? "Copied." : "Selected: press Ctrl+C, or ⌘C on a Mac.";
  });
}

/* A click on a column head sorts the table: numbers by value, other cells as text, empty cells last. */
function key(row, column) {
  let end = 0;  // a cell may span several columns
  const cell = [...row.cells].find((one) => (end += one.colSpan) > column);
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

/* Say which tables are wider than the page, and shade the side on which there is more. */
function hintAtScrolling() {
  for (const region of document.querySelectorAll(".scroll")) {
    const hidden = region.scrollWidth - region.clientWidth;
    region.classList.toggle("more", region.scrollLeft < hidden - 1);
    region.previousElementSibling.hidden = hidden <= 1;
  }
}
for (const region of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "hint";
  hint.textContent = "Wider than the page: scroll sideways →";
  region.before(hint);
  region.addEventListener("scroll", hintAtScrolling, { passive: true });
  region.closest("details")?.addEventListener("toggle", hintAtScrolling);
}
addEventListener("resize", hintAtScrolling);
hintAtScrolling();

/* Open all details for printing, and close them again afterwards. */
const closed = [];
addEventListener("beforeprint", () => {
  closed.push(...document.querySelectorAll("details:not([open])"));
  closed.forEach((one) => (one.open = true));
});
addEventListener("afterprint", () => closed.splice(0).forEach((one) => (one.open = false)));
