// Draws the sections; the graph of the model that is shown, and light or dark, can be chosen.

const data = JSON.parse(document.getElementById("data").textContent);
let redraw = () => {};

function show(index) {
  const parts = index === 0 && data.views.length > 1 ? data.views.slice(1) : [data.views[index]];
  const view = { ...data.views[index], decisions: parts.flatMap((part) => part.decisions) };
  drawHeadline(view, data.groups);
  for (const id of ["memory", "decisions", "modules", "graph"]) document.getElementById(id).hidden = false;
  redraw = drawTimelines(view);
  drawTable(view, data.groups);
  drawModules(view);
  drawGraph(parts, data.groups);
}

function viewChoice() {
  if (data.views.length < 2) return null;
  return html("label", {}, "graph ", html("select", { name: "view", onchange: (event) => show(Number(event.target.value)) },
    data.views.map((view, i) => html("option", { value: i }, view.name))));
}

function themeButton() {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const button = html("button", { type: "button", id: "theme", onclick: () => { root.dataset.theme = isDark() ? "light" : "dark"; label(); } });
  const label = () => { button.textContent = isDark() ? "light" : "dark"; button.setAttribute("aria-label", `switch to ${button.textContent} colours`); };
  label();
  return button;
}

document.getElementById("controls").append(...[viewChoice(), themeButton()].filter(Boolean));
document.getElementById("sections").hidden = false;
document.body.append(tooltip);
show(0);
addEventListener("resize", () => redraw());
addEventListener("scroll", hideTooltip, { passive: true });
