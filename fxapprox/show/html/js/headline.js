// Totals: stored bytes and predicted peak against plain torch.compile, and what is stored how.

function drawHeadline(view, groups) {
  const totals = html("div", { class: "totals" },
    totalOf("Stored for backward", ...view.stored), totalOf("Predicted peak", ...view.peak), groupsOf(view, groups));
  const facts = [
    view.setting ? ["Setting", view.setting] : null,
    view.bits === null ? null : ["Average", `${view.bits.toFixed(2)} bits an element, of values whose code has a loss`],
    ...view.notes.map((note) => note.split(/: (.*)/s)).map(([name, text]) => [name, text]),
  ].filter(Boolean);
  document.getElementById("headline").replaceChildren(...[
    view.fallback ? html("p", { class: "warning" }, html("b", {}, "Stored exactly, as plain torch.compile does. "), view.fallback) : null,
    totals,
    facts.length ? html("div", { class: "facts" }, facts.map(factLine)) : null,
  ].filter(Boolean));
}

function factLine([name, text]) {
  return text === undefined ? html("p", {}, name) : html("p", {}, html("b", {}, `${name[0].toUpperCase()}${name.slice(1)}: `), text);
}

function totalOf(label, before, after) {
  const most = Math.max(before, after, 1);
  const row = (name, bytes, kind) => [
    html("span", {}, name),
    html("div", { class: `bar ${kind}`, style: `width: ${(100 * bytes) / most}%` }),
    html("span", { class: "number" }, bytesText(bytes)),
  ];
  return html("div", { class: "total" },
    html("div", { class: "label" }, label),
    html("div", { class: "value" }, bytesText(after), html("span", { class: "times" }, timesText(before, after))),
    html("div", { class: "compare" }, row("plain torch.compile", before, "plain"), row("this plan", after, "")));
}

function groupsOf(view, groups) {
  const most = Math.max(...view.totals.map(([, , , after]) => after), 1);
  const rows = view.totals.map(([group, count, , after]) => [
    storageText(group, groups[group]),
    html("span", { class: "number quiet" }, countText(count, "value")),
    html("div", {}, html("div", { class: "bytes-bar", style: `width: ${(100 * after) / most}%; background: var(--${group}); min-width: ${after ? 2 : 0}px` })),
    html("span", { class: "number" }, after ? bytesText(after) : "–"),
  ]);
  return html("div", { class: "total" },
    html("div", { class: "label" }, rows.length ? `${countText(view.totals.reduce((sum, t) => sum + t[1], 0), "value")}, and what becomes of them` : "Values"),
    rows.length ? html("div", { class: "groups" }, rows) : html("p", {}, nothingText(view)));
}
