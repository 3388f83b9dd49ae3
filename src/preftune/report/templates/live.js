// Reloads what has changed of a page that is served while its run goes on; scroll, tabs, toggles and zoom stay.
(() => {
  "use strict";
  const EVERY = 1000; // milliseconds
  const report = window.report;
  const badge = document.getElementById("live");
  const sections = () => [...document.querySelectorAll("main > section[id], main > nav[id]")];
  let stamp = document.documentElement.dataset.stamp;
  let before = new Map(JSON.parse(document.getElementById("sections").textContent));

  function say(text, state) {
    badge.textContent = text;
    badge.dataset.state = state;
  }

  function kept(section) {
    return {
      tabs: [...section.querySelectorAll("[role=tab][aria-selected=true]")].map((tab) => tab.id),
      inputs: [...section.querySelectorAll("input[id]")].map((input) => [input.id, input.checked]),
      open: [...section.querySelectorAll("details[id]")].map((one) => [one.id, one.open]),
      scrolls: [...section.querySelectorAll("[id]")].filter((one) => one.scrollTop).map((one) => [one.id, one.scrollTop]),
      focus: section.contains(document.activeElement) ? document.activeElement.id : "",
    };
  }

  function restore(state) {
    const find = (id) => document.getElementById(id);
    for (const id of state.tabs) if (find(id)) report.choose(find(id));
    for (const [id, checked] of state.inputs) if (find(id)) find(id).checked = checked;
    for (const [id, open] of state.open) if (find(id)) find(id).open = open;
    for (const [id, top] of state.scrolls) if (find(id)) find(id).scrollTop = top;
    if (state.focus) find(state.focus)?.focus({ preventScroll: true });
  }

  function replace(old, fresh) {
    const state = kept(old);
    const plots = new Map([...old.querySelectorAll(".plot")].map((plot) => [plot.id, plot]));
    for (const plot of fresh.querySelectorAll(".plot")) {
      const drawn = plots.get(plot.id);
      if (drawn && report.drawn.has(drawn)) plot.replaceWith(drawn); // its zoom is its own
    }
    old.replaceWith(fresh);
    report.tabs(fresh);
    restore(state);
    report.watch(fresh);
  }

  function renew(page) {
    const [left, top] = [scrollX, scrollY];
    const after = new Map(JSON.parse(page.getElementById("sections").textContent));
    document.getElementById("figures").textContent = page.getElementById("figures").textContent;
    report.read();
    const main = document.querySelector("main");
    let last = document.querySelector("main > header");
    for (const fresh of page.querySelectorAll("main > section[id], main > nav[id]")) {
      const old = document.getElementById(fresh.id);
      let here = old;
      if (!old) {
        here = document.adoptNode(fresh);
        main.insertBefore(here, last.nextSibling);
        report.tabs(here);
        report.watch(here);
      } else if (before.get(fresh.id) !== after.get(fresh.id)) {
        here = document.adoptNode(fresh);
        replace(old, here);
      }
      last = here;
    }
    for (const section of sections()) if (!after.has(section.id)) section.remove();
    for (const plot of report.drawn) if (plot.isConnected) report.draw(plot);
    document.title = page.title;
    before = after;
    scrollTo(left, top);
  }

  async function look() {
    try {
      const seen = await (await fetch("/stamp", { cache: "no-store" })).json();
      if (seen.error) say(seen.error, "error");
      else if (seen.stamp !== stamp) {
        const page = new DOMParser().parseFromString(await (await fetch("/", { cache: "no-store" })).text(), "text/html");
        if (page.documentElement.dataset.stamp) {
          stamp = page.documentElement.dataset.stamp;
          renew(page);
        }
      }
      if (!seen.error) say(seen.said, seen.state);
    } catch {
      say("preftune report --watch has ended: this is the last that it showed", "gone");
    }
    setTimeout(look, EVERY);
  }

  look();
})();
