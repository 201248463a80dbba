"use strict";
// Sorting and filtering of the page's tables, and links to rows inside closed parts.  Without it the page reads the same.
(() => {
  const FEWEST_TO_FILTER = 4;

  const textOf = (unit, column) => {
    const cell = (unit.rows ? unit.rows[0] : unit).cells[column];
    return cell ? (cell.dataset.sort ?? cell.textContent).trim() : "";
  };

  // A leading number, unless letters follow it as in a key.
  const numberOf = text => {
    const found = /^\[?([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])/i.exec(text.replaceAll("−", "-"));
    return found ? Number(found[1].replaceAll(",", "")) : NaN;
  };

  const compare = (one, other) => {
    const numbers = [numberOf(one), numberOf(other)];
    if (!numbers.some(Number.isNaN)) return numbers[0] - numbers[1];
    return one.localeCompare(other, undefined, { numeric: true });
  };

  // Cells without a value stay at the end in both directions.
  const sorted = (units, column, direction) => units.map(unit => [textOf(unit, column), unit]).sort(([one], [other]) =>
    (one === "") - (other === "") || direction * compare(one, other)).map(([, unit]) => unit);

  const unitsOf = table => table.tBodies.length > 1 ? [...table.tBodies] : [...table.tBodies[0].rows];

  const sortable = table => {
    const units = unitsOf(table);
    if (units.length < 2) return;
    const parent = units[0].parentNode;
    const heads = [...table.tHead.rows[0].cells];
    const next = { none: "ascending", ascending: "descending", descending: "none" };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.title = "Sort: ascending, descending, order of the grid";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const state = next[head.getAttribute("aria-sort")];
        heads.forEach(other => other.setAttribute("aria-sort", other === head ? state : "none"));
        parent.append(...(state === "none" ? units : sorted(units, column, state === "ascending" ? 1 : -1)));
      });
    });
  };

  const filterable = (table, place) => {
    const rows = [...table.tBodies].flatMap(body => [...body.rows]);
    if (rows.length < FEWEST_TO_FILTER) return;
    const box = document.createElement("p");
    box.className = "filter";
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "Filter rows";
    input.setAttribute("aria-label", `Filter rows of table ${place + 1}`);
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    box.append(input, count);
    (table.closest(".scroll") ?? table).before(box);
    const texts = rows.map(row => row.textContent.toLowerCase());
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row, index) => { row.hidden = !words.every(word => texts[index].includes(word)); });
      const shown = rows.filter(row => !row.hidden).length;
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
  };

  // A link may lead into a closed part, or to rows that a filter hides.
  const reveal = hash => {
    const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
    if (!target) return;
    for (let part = target.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    const input = target.closest("details, section")?.querySelector(".filter input");
    if (input && input.value && target.querySelector("tr[hidden]")) {
      input.value = "";
      input.dispatchEvent(new Event("input"));
    }
    target.scrollIntoView({ block: "center" });
  };

  const tables = [...document.querySelectorAll("table")].filter(table => table.tHead && table.tBodies.length);
  tables.forEach(sortable);
  tables.forEach(filterable);
  addEventListener("hashchange", () => reveal(location.hash));
  document.addEventListener("click", event => {
    const link = event.target.closest('a[href^="#"]');
    if (link && link.hash === location.hash) reveal(link.hash);
  });
  reveal(location.hash);

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(#evaluations)")];
    closed.forEach(part => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach(part => { part.open = false; }));
})();
