"use strict";
(() => {
  // Plots: the page's own colours, again whenever the scheme changes.
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const theme = () => {
    const axis = (name) => ({ [`${name}.gridcolor`]: colour("--grid"), [`${name}.linecolor`]: colour("--line") });
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": colour("--ink"),
      "font.family": getComputedStyle(document.body).fontFamily,
      "hoverlabel.bgcolor": colour("--card"),
      "hoverlabel.bordercolor": colour("--line"),
      "hoverlabel.font": { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": colour("--soft"),
      "modebar.activecolor": colour("--accent"),
      ...axis("xaxis"),
      ...axis("yaxis"),
    };
  };
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "zoom2d", "resetScale2d"]] };
  const plots = [...document.querySelectorAll("script[data-for]")].map((source) => {
    const place = document.getElementById(source.dataset.for);
    const { data, layout } = JSON.parse(source.textContent);
    Plotly.newPlot(place, data, layout, config).then(() => Plotly.relayout(place, theme()));
    return place;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const place of plots) Plotly.relayout(place, theme());
  });

  // Table: a click on a heading sorts by it, a second click the other way; cells without a number stay last.
  const table = document.getElementById("candidates");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x < y ? -1 : x > y ? 1 : 0;
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const known = (row) => row.cells[column].dataset.key !== undefined;
      const rows = [...body.rows];
      const sorted = rows
        .filter(known)
        .sort((a, b) => (down ? -1 : 1) * compare(a.cells[column].dataset.key, b.cells[column].dataset.key));
      body.append(...sorted, ...rows.filter((row) => !known(row)));
    });
  });
})();
