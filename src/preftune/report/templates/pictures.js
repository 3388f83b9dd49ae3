// Draws every figure as PNG and as SVG, and leaves them in the document as data URLs.
(async () => {
  "use strict";
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const [figures, sizes] = [read("figures"), read("sizes")];
  const drawn = {};
  for (const [key, { data, layout }] of Object.entries(figures)) {
    const [width, height] = sizes[key];
    layout.paper_bgcolor = layout.plot_bgcolor = "#ffffff";
    layout.font = { ...layout.font, family: "Helvetica, Arial, 'Liberation Sans', sans-serif", color: "#333333", size: 14 };
    layout.margin = { l: 64, r: 18, t: Math.max(44, layout.margin.t), b: 52 };
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      if (layout[axis].title) layout[axis].title.font = { size: 14 };
    }
    for (const format of ["png", "svg"]) {
      drawn[`${key}.${format}`] = await Plotly.toImage({ data, layout }, { format, width, height, scale: format === "png" ? 2 : 1 });
    }
  }
  const pre = document.createElement("pre");
  pre.id = "drawn";
  // as JSON without what HTML would write otherwise
  pre.textContent = JSON.stringify(drawn).replace(/[<>&]/g, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);
  document.body.append(pre);
})();
