(() => {
  "use strict";
  const root = document.documentElement;
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const config = { responsive: true, displayModeBar: false };
  const memory = {
    // a page that is opened as a file may be refused storage
    get: (key) => { try { return localStorage.getItem(key); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* forgotten at the next visit */ } },
  };
  const read = () => JSON.parse(document.getElementById("figures").textContent);
  let figures = read();
  root.classList.add("js");

  // Figures are drawn when they come into sight, and again when the theme changes.
  const drawn = new Set();
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  function colour(name) {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  }

  function draw(element) {
    const figure = figures[element.id.replace("figure-", "")];
    if (!figure) return;
    const layout = structuredClone(figure.layout);
    layout.uirevision = "kept"; // zoom and legend outlive new data
    layout.font.color = colour("--quiet");
    layout.hoverlabel = {
      bgcolor: colour("--card"),
      bordercolor: colour("--line"),
      font: { color: colour("--ink") },
    };
    if (touch) layout.dragmode = false; // a finger on a figure scrolls the page
    for (const axis of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      layout[axis].gridcolor = colour("--line");
      layout[axis].linecolor = colour("--line");
    }
    drawn.add(element);
    Plotly.react(element, structuredClone(figure.data), layout, config);
  }

  const waiting = new Set();

  function draw_next() {
    const [element] = waiting; // one at a time, so that the page answers in between
    if (!element) return;
    waiting.delete(element);
    if (element.isConnected) draw(element);
    setTimeout(draw_next);
  }

  const sight = new IntersectionObserver(
    (seen) => {
      if (!waiting.size) setTimeout(draw_next);
      for (const { target } of seen.filter((one) => one.isIntersecting)) {
        sight.unobserve(target);
        waiting.add(target);
      }
    },
    { rootMargin: "300px" },
  );

  function watch(within) {
    for (const element of within.querySelectorAll(".plot")) if (!drawn.has(element)) sight.observe(element);
  }

  function redraw() {
    for (const element of drawn) element.isConnected ? draw(element) : drawn.delete(element);
  }

  // Light and dark.
  function dress(theme) {
    root.dataset.theme = theme;
    for (const input of document.querySelectorAll("input[name=theme]")) input.checked = input.value === theme;
    redraw();
  }

  document.addEventListener("change", ({ target }) => {
    if (target.name !== "theme") return;
    memory.set("preftune-theme", target.value);
    dress(target.value);
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // Tabs: one panel at a time; arrow keys, Home and End move among them.
  function choose(tab) {
    for (const one of tab.parentElement.children) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
      document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
    }
  }

  function tabs(within) {
    for (const list of within.querySelectorAll("[role=tablist]")) choose(list.children[0]);
  }

  document.addEventListener("click", ({ target }) => {
    const tab = target.closest("[role=tab]");
    if (tab) choose(tab);
  });
  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (!tab) return;
    const all = [...tab.parentElement.children];
    const at = all.indexOf(tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(all[to % all.length]);
    all[to % all.length].focus();
  });

  // What a token got: under the pointer, at a tap, or with the arrow keys.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  function words(token) {
    const { credit, logps, reference } = token.parentElement.dataset;
    const at = [...token.parentElement.children].indexOf(token);
    const numbers = (text) => text.split(",").map((one) => (one === "" ? null : Number(one)));
    const show = (value) => String(Number(value.toPrecision(3))).replace("-", "\u2212");
    const signed = (value) => (value > 0 ? "+" : "") + show(value);
    const [earned, own, other] = [credit, logps, reference].map((text) => numbers(text));
    if (earned[at] === null) return `token ${at + 1}: it does not count, no credit`;
    const so_far = earned.slice(0, at + 1).reduce((sum, one) => sum + (one ?? 0), 0);
    const measured = (own[at] ?? null) !== null && (other[at] ?? null) !== null;
    return (
      `token ${at + 1}: credit ${signed(earned[at])}, reward so far ${signed(so_far)}` +
      (measured ? `; log-probability ${show(own[at])}, reference ${show(other[at])} nats` : "")
    );
  }

  function tell(token) {
    document.querySelector(".t.told")?.classList.remove("told");
    tip.hidden = !token;
    if (!token) return;
    token.classList.add("told");
    tip.textContent = words(token);
    const box = token.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, root.clientWidth - tip.offsetWidth - 8));
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 0 ? above : box.bottom + 6}px`;
  }

  document.addEventListener("pointerover", ({ target }) => tell(target.closest?.(".t")));
  document.addEventListener("click", ({ target }) => tell(target.closest(".t")));
  document.addEventListener("scroll", () => tell(null), { passive: true });
  document.addEventListener("focusout", ({ target }) => target.matches?.(".tokens") && tell(null));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tell(null);
    if (!event.target.matches?.(".tokens") || !/^Arrow(Left|Right)$/.test(event.key)) return;
    event.preventDefault();
    const all = [...event.target.querySelectorAll(".t")];
    const at = all.indexOf(event.target.querySelector(".told"));
    tell(all[Math.max(0, Math.min(all.length - 1, at + (event.key === "ArrowRight" ? 1 : -1)))]);
  });

  dress(memory.get("preftune-theme") ?? "auto");
  tabs(document);
  watch(document);
  window.addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));
  window.report = { read: () => { figures = read(); }, choose, draw, drawn, tabs, watch };
})();
