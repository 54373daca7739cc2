"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const options = new URLSearchParams(location.hash.slice(1)); // #sort=-ap&theme=dark

  // Theme: the system's unless chosen.
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`);
  };
  if (["light", "dark"].includes(options.get("theme"))) root.dataset.theme = options.get("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();

  // Tables: numbers by value, texts by the alphabet, missing values last either way.
  const value = (row, column) => {
    const raw = row.cells[column].dataset.v;
    return raw === undefined || raw === "" ? null : raw;
  };
  function sort(heading, direction) {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const sign = direction === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows];
    const text = heading.dataset.type === "text";
    rows.sort((first, second) => {
      const a = value(first, column);
      const b = value(second, column);
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (text ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b));
    });
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    table.tBodies[0].append(...rows);
  }
  for (const heading of document.querySelectorAll("th[data-key]")) {
    heading.querySelector("button").addEventListener("click", () => {
      const first = heading.dataset.type === "text" ? "ascending" : "descending";
      const now = heading.getAttribute("aria-sort");
      sort(heading, now === null ? first : now === "ascending" ? "descending" : "ascending");
    });
  }
  const wanted = options.get("sort");
  if (wanted) {
    const key = wanted.replace(/^-/, "");
    const heading = [...document.querySelectorAll("#main-table th[data-key]")].find((th) => th.dataset.key === key);
    if (heading) sort(heading, wanted.startsWith("-") ? "descending" : "ascending");
  }

  // Legends: an arm can be hidden in all charts.
  const toggles = [...document.querySelectorAll(".legend button")];
  for (const toggle of toggles) {
    toggle.addEventListener("click", () => {
      const show = toggle.getAttribute("aria-pressed") === "false";
      const arm = toggle.dataset.arm;
      for (const other of toggles) if (other.dataset.arm === arm) other.setAttribute("aria-pressed", String(show));
      for (const part of document.querySelectorAll("svg.chart [data-arm]")) {
        if (part.dataset.arm === arm) part.style.display = show ? "" : "none";
      }
    });
  }

  // Curves: the values of the epoch under the pointer.
  const hidden = (arm) => toggles.some((t) => t.dataset.arm === arm && t.getAttribute("aria-pressed") === "false");
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const chart = data.charts[figure.dataset.chart];
    const svg = figure.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const values = figure.querySelector(".values");
    const move = (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * data.width;
      const share = Math.min(1, Math.max(0, (at - chart.start) / (chart.end - chart.start)));
      const epoch = Math.round(chart.low + share * (chart.high - chart.low));
      const x = chart.start + ((epoch - chart.low) / (chart.high - chart.low || 1)) * (chart.end - chart.start);
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      cursor.setAttribute("visibility", "visible");
      const told = [];
      for (const series of chart.series) {
        const index = series.x.indexOf(epoch);
        if (index >= 0 && !hidden(series.name)) told.push(`${series.name} ${series.y[index].toFixed(chart.digits)}`);
      }
      values.textContent = `Epoch ${epoch}: ${told.join(", ") || "no value"}`;
    };
    svg.addEventListener("pointermove", move);
    svg.addEventListener("pointerdown", move);
    svg.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      values.textContent = "";
    });
  }
})();
