"use strict";
// Draws every chart of the page, and again in other colours when the reader switches between light and dark.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function coloured(value, css) {
    if (typeof value === "string") return value.startsWith("--") ? css.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) return typeof value[0] === "number" && typeof value.at(-1) !== "string" ? value : value.map((item) => coloured(item, css));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, css)]));
  }

  // Rows of a legend above a chart, beyond the first: a chart too low for its legend would hide part of it.
  function moreLegendRows(figure) {
    if (figure.layout.showlegend === false) return 0;
    const named = figure.traces.filter((trace) => trace.name && trace.showlegend !== false).map((trace) => trace.name.length);
    const room = document.getElementById(figure.id).clientWidth - 60;
    return Math.ceil(named.length / Math.max(1, Math.floor(room / (7 * Math.max(0, ...named) + 50)))) - 1;
  }

  function layout(figure, css) {
    const colour = (name) => css.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true };
    const own = coloured(figure.layout, css);
    const title = (a) => (a && a.title ? { title: { standoff: 6, ...a.title } } : {});
    const axes = Object.keys(own).filter((key) => /^[xy]axis\d*$/.test(key));
    const styled = ["xaxis", "yaxis", ...axes].map((key) => [key, { ...axis, ...own[key], ...title(own[key]) }]);
    return {
      height: figure.height_px + 19 * Math.max(0, moreLegendRows(figure)),
      margin: { l: 46, r: 14, t: 14, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--muted") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      ...own,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", maxheight: 1, ...own.legend },
      ...Object.fromEntries(styled),
    };
  }

  function draw() {
    const css = getComputedStyle(document.documentElement);
    const drawn = figures.map((figure) =>
      Plotly.react(document.getElementById(figure.id), coloured(figure.traces, css), layout(figure, css), {
        responsive: true,
        displaylogo: false,
        showSendToCloud: false,
        displayModeBar: false,
      }),
    );
    Promise.all(drawn).then(() => {
      document.documentElement.dataset.drawn = drawn.length;
      document.documentElement.dataset.scheme = dark.matches ? "dark" : "light";
    });
  }

  dark.addEventListener("change", draw);
  draw();
})();
