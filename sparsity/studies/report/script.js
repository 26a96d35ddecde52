"use strict";

// One tip for definitions and values. It belongs to an element, and follows a point of it when the page is scrolled.
const tip = document.getElementById("tip");
let shown = null;

const place = () => {
  if (!shown) return;
  const [x, y] = shown.where();
  const { width, height } = tip.getBoundingClientRect();
  const right = document.documentElement.clientWidth - width - 4;
  tip.style.left = `${Math.max(Math.min(x + 12, right), 4)}px`;
  tip.style.top = `${y + 14 + height < innerHeight ? y + 14 : Math.max(y - height - 10, 4)}px`;
};

const hide = () => {
  tip.hidden = true;
  shown?.close();
  shown = null;
};

const show = (text, owner, where, close = () => {}) => {
  if (shown?.owner !== owner) hide();
  shown = { owner, where, close };
  tip.textContent = text;
  tip.hidden = false;
  place();
};

addEventListener("scroll", place, { capture: true, passive: true });
addEventListener("resize", place);
addEventListener("keydown", (event) => event.key === "Escape" && hide());
addEventListener("pointerdown", (event) => event.target.closest("a.term, .plot") || hide());

// Definitions: a term links to its own, and shows it under a mouse, in focus, and at the first touch.
for (const term of document.querySelectorAll("a.term")) {
  const define = () => {
    show(document.querySelector(term.hash).textContent, term, () => {
      const { left, bottom } = term.getBoundingClientRect();
      return [left, bottom - 8];
    });
  };
  let first = false;
  term.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && define());
  term.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  term.addEventListener("pointerdown", (event) => (first = event.pointerType === "touch" && shown?.owner !== term));
  term.addEventListener("focus", define);
  term.addEventListener("blur", hide);
  term.addEventListener("click", (event) => {
    if (!first) return;
    event.preventDefault();
    define();
  });
}

// Tables: a click on a header sorts up, then down, then not; equal rows keep their order, cells of nothing come last.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
};
const rank = (value) => (value === "" || value === "-" || Number.isNaN(value) ? 2 : typeof value === "string" ? 1 : 0);
const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a < b ? -1 : Number(a > b));

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) =>
    header.querySelector("button").addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
      const direction = next === undefined ? "ascending" : next;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (direction) header.setAttribute("aria-sort", direction);
      const sign = direction === "descending" ? -1 : 1;
      const keyed = rows.map((row) => [valueOf(row, column), row]);
      const order = ([a], [b]) => rank(a) - rank(b) || (rank(a) < 2 ? sign * compare(a, b) : 0);
      body.append(...(direction ? keyed.sort(order).map(([, row]) => row) : rows));
    }),
  );
}

// Figures: the value nearest to a pointer; in focus, left and right go along a curve, up and down to the next one.
const said = document.getElementById("said");

JSON.parse(document.getElementById("figures").textContent).forEach((panels, index) => {
  const curves = panels.flatMap((panel) => panel.curves.map((curve) => ({ ...curve, panel })));
  if (!curves.length) return;
  const plot = document.getElementById(`plot-${index}`);
  const svg = plot.querySelector("svg");
  const dot = svg.appendChild(document.createElementNS(svg.namespaceURI, "circle"));
  dot.setAttribute("class", "reading");
  let at = null;

  const read = (curve, point) => {
    const [left, top, x, y] = curves[curve].points[point];
    const { name, colour, panel } = curves[curve];
    at = { curve, point };
    dot.setAttribute("cx", left);
    dot.setAttribute("cy", top);
    dot.style.stroke = colour;
    const text = [name, `${panel.y}: ${y}`, `${panel.x}: ${x}`].filter(Boolean).join("\n");
    const where = () => {
      const there = new DOMPoint(left, top).matrixTransform(svg.getScreenCTM());
      return [there.x, there.y];
    };
    show(text, plot, where, () => dot.setAttribute("r", 0));
    dot.setAttribute("r", 4);
    return text;
  };

  const nearest = (event) => {
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let best = { distance: Infinity };
    curves.forEach(({ points, panel: { box } }, curve) => {
      if (x < box[0] - 4 || x > box[2] + 4 || y < box[1] - 4 || y > box[3] + 4) return;
      points.forEach(([left, top], point) => {
        const distance = Math.hypot(left - x, top - y);
        if (distance < best.distance) best = { distance, curve, point };
      });
    });
    if (best.distance < Infinity) read(best.curve, best.point);
    else hide();
  };
  plot.addEventListener("pointermove", nearest);
  plot.addEventListener("pointerdown", nearest);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  plot.addEventListener("blur", hide);

  const along = { ArrowLeft: -1, ArrowRight: 1 };
  const across = { ArrowUp: -1, ArrowDown: 1 };
  plot.addEventListener("keydown", (event) => {
    if (!(event.key in along || event.key in across)) return;
    event.preventDefault();
    const from = at ?? { curve: -(across[event.key] ?? 0), point: -(along[event.key] ?? 0) };
    const curve = (from.curve + (across[event.key] ?? 0) + curves.length) % curves.length;
    const last = curves[curve].points.length - 1;
    said.textContent = read(curve, Math.min(Math.max(from.point + (along[event.key] ?? 0), 0), last));
  });
});

// What can be copied: to the clipboard, or else selected for the reader to.
for (const code of document.querySelectorAll(".code")) {
  const button = code.appendChild(document.createElement("button"));
  const text = code.querySelector("pre");
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "selected";
    }
  });
}
