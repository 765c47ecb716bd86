// The decisions as a table: sorted by any column, filtered by text, class and storage.

const ROWS = 200; // shown at first: a thousand rows more take a moment to lay out
const COLUMNS = [
  { key: "value", sort: (d) => d.value, cell: (d) => html("td", { class: "wrap mono" }, pathText(d.value)) },
  { key: "module", sort: (d) => d.module, cell: (d) => html("td", { class: "wrap" }, pathText(d.module)) },
  { key: "shape", sort: (d) => d.shape.reduce((a, b) => a * b, 1), cell: (d) => html("td", { class: "mono type" }, typeText(d)) },
  { key: "class", sort: (d) => d.class, cell: (d) => html("td", {}, d.class) },
  { key: "storage", sort: (d) => d.storage, cell: (d) => html("td", {}, storageText(d.group, d.storage)) },
  { key: "before", number: true, sort: (d) => d.before, cell: (d, most) => bytesCell(d.before, most, "plain") },
  { key: "after", number: true, sort: (d) => d.after, cell: (d, most) => bytesCell(d.after, most, "") },
  { key: "reason", sort: (d) => d.reason, cell: (d) => html("td", { class: "reason" }, d.reason, d.source ? html("span", { class: "source mono" }, d.source) : null) },
];

function bytesCell(bytes, most, kind) {
  return html("td", { class: "number" }, bytes ? bytesText(bytes) : "–",
    html("span", { class: `bytes-bar ${kind}`, style: bytes ? `width: ${(100 * bytes) / most}%` : "width: 0; min-width: 0" }));
}

function drawTable(view, groups) {
  const decisions = view.decisions;
  const state = { text: "", class: "", group: "", key: "before", down: true, all: false };
  const most = Math.max(...decisions.map((d) => Math.max(d.before, d.after)), 1);
  const rows = html("tbody"), count = html("span", { class: "count", role: "status" });
  const more = html("button", { class: "more", type: "button", onclick: () => { state.all = true; draw(); } });
  const heads = COLUMNS.map((column) => headOf(column, state, draw));
  const table = html("table", { class: "data decisions" }, html("caption", { class: "visually-hidden" }, "Decisions"),
    html("thead", {}, html("tr", {}, heads)), rows);

  function draw() {
    const found = sorted(decisions.filter((decision) => matches(decision, state)), state);
    const shown = state.all ? found : found.slice(0, ROWS);
    rows.replaceChildren(...shown.map((d) => html("tr", {}, COLUMNS.map((column) => column.cell(d, most)))));
    if (!found.length) rows.append(html("tr", {}, html("td", { class: "empty", colspan: COLUMNS.length }, decisions.length ? "no value matches" : nothingText(view))));
    more.hidden = shown.length === found.length;
    more.textContent = `show all ${found.length}`;
    const sum = (key) => bytesText(found.reduce((total, d) => total + d[key], 0));
    count.textContent = `${found.length} of ${countText(decisions.length, "value")}: ${sum("before")} before, ${sum("after")} after`;
    heads.forEach((head, i) => {
      const active = COLUMNS[i].key === state.key;
      head.setAttribute("aria-sort", active ? (state.down ? "descending" : "ascending") : "none");
      head.querySelector(".arrow").textContent = active ? (state.down ? "↓" : "↑") : "";
    });
  }

  draw();
  body("decisions").replaceChildren(filtersOf(decisions, groups, state, draw, count),
    html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table of decisions" }, table, more));
}

function headOf(column, state, draw) {
  const sort = () => {
    state.down = state.key === column.key ? !state.down : Boolean(column.number || column.key === "shape");
    state.key = column.key;
    draw();
  };
  const arrow = html("span", { class: "arrow", "aria-hidden": "true" });
  const parts = column.number ? [arrow, column.key] : [column.key, " ", arrow];
  return html("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": "none" },
    html("button", { type: "button", onclick: sort }, parts));
}

function filtersOf(decisions, groups, state, draw, count) {
  const update = (key) => (event) => { state[key] = event.target.value; state.all = false; draw(); };
  const choice = (key, label, options) => html("label", {}, label,
    html("select", { onchange: update(key), name: key }, html("option", { value: "" }, "all"),
      options.map(([value, name]) => html("option", { value }, name))));
  const classes = [...new Set(decisions.map((d) => d.class))].sort();
  const used = new Set(decisions.map((d) => d.group));
  return html("div", { class: "filters", role: "search" },
    html("input", { type: "search", name: "text", placeholder: "filter: name, module, reason, source …", "aria-label": "Filter decisions by text", oninput: update("text") }),
    choice("class", "class", classes.map((name) => [name, name])),
    choice("group", "storage", Object.entries(groups).filter(([key]) => used.has(key))),
    count);
}

function matches(decision, state) {
  if (state.class && decision.class !== state.class) return false;
  if (state.group && decision.group !== state.group) return false;
  const text = [decision.value, decision.module, typeText(decision), decision.class, decision.storage, decision.reason, decision.source].join("\n").toLowerCase();
  return state.text.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

const byName = new Intl.Collator("en", { numeric: true });

function sorted(decisions, state) {
  const { sort } = COLUMNS.find((column) => column.key === state.key);
  const compare = (a, b) => (typeof sort(a) === "number" ? sort(a) - sort(b) : byName.compare(sort(a), sort(b)));
  return decisions.sort((a, b) => (state.down ? -1 : 1) * compare(a, b));
}
