// The module tree with its bytes: rows that open and close; equal neighbours ("layers 3-11") are one row.

const OPEN_AT_FIRST = 24; // rows

function drawModules(view) {
  const root = moduleTree(view.decisions);
  const most = Math.max(root.before, root.after, 1);
  const rows = html("tbody");
  const open = new Set();
  for (const level of levelsOfTree(root)) {
    if (level.flatMap((node) => node.children).length + open.size > OPEN_AT_FIRST && open.size) break;
    level.forEach((node) => open.add(node.key));
  }
  const toggle = (node) => { open.has(node.key) ? open.delete(node.key) : open.add(node.key); draw(node.key); };

  function draw(focused) {
    rows.replaceChildren();
    const add = (node, depth) => {
      rows.append(moduleRow(node, depth, most, open.has(node.key), toggle));
      if (open.has(node.key)) node.children.forEach((child) => add(child, depth + 1));
    };
    add(root, 0);
    if (focused !== undefined) [...rows.querySelectorAll(".opener")].find((b) => b.dataset.key === focused)?.focus();
  }

  draw();
  const head = ["module", "values", "before", "after", ""].map((name, i) =>
    html("th", { scope: "col", class: i > 0 && i < 4 ? "number" : null, style: "padding: 0.4rem 0.6rem" }, name || html("span", { class: "visually-hidden" }, "bars")));
  body("modules").replaceChildren(view.decisions.length
    ? html("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Module tree" },
        html("table", { class: "data tree", role: "treegrid", "aria-label": "Modules with bytes" }, html("thead", {}, html("tr", {}, head)), rows))
    : html("p", { class: "empty" }, nothingText(view)));
}

function moduleRow(node, depth, most, isOpen, toggle) {
  const keys = (event) => {
    if ((event.key === "ArrowRight" && !isOpen) || (event.key === "ArrowLeft" && isOpen)) { event.preventDefault(); toggle(node); }
  };
  const opener = node.children.length
    ? html("button", { type: "button", class: "opener", "data-key": node.key, "aria-expanded": String(isOpen), "aria-label": `${isOpen ? "close" : "open"} ${node.label}`, onclick: () => toggle(node), onkeydown: keys }, isOpen ? "▾" : "▸")
    : html("span", { class: "leaf" });
  const bar = (bytes, kind) => html("div", { class: kind, style: bytes ? `width: ${(100 * bytes) / most}%` : "width: 0; min-width: 0" });
  return html("tr", { role: "row", "aria-level": depth + 1, "aria-expanded": node.children.length ? String(isOpen) : null },
    html("td", { role: "gridcell" }, html("span", { class: "name", style: `--depth: ${depth}` }, opener, html("span", {}, node.label),
      node.times > 1 ? html("span", { class: "quiet" }, `× ${node.times} equal`) : null)),
    html("td", { class: "number quiet", role: "gridcell" }, node.count.toLocaleString("en")),
    html("td", { class: "number", role: "gridcell" }, bytesText(node.before)),
    html("td", { class: "number", role: "gridcell" }, bytesText(node.after)),
    html("td", { class: "bars", role: "gridcell" }, bar(node.before, "plain"), bar(node.after, "")));
}

function moduleTree(decisions) {
  const made = (key, label) => ({ key, label, count: 0, before: 0, after: 0, times: 1, children: [], byName: new Map() });
  const root = made("", "total");
  for (const decision of decisions) {
    let node = root;
    const path = [root];
    for (const name of decision.module ? decision.module.split(".") : []) {
      if (!node.byName.has(name)) node.byName.set(name, made(`${node.key}.${name}`, name));
      path.push((node = node.byName.get(name)));
    }
    for (const visited of path) { visited.count += 1; visited.before += decision.before; visited.after += decision.after; }
  }
  return settled(root);
}

// Children in order, chains of only children joined, equal neighbours folded.
function settled(node) {
  const children = [...node.byName.values()].map(settled).sort((a, b) => byName.compare(a.label, b.label));
  if (children.length === 1 && children[0].count === node.count && children[0].times === 1) {
    const [only] = children;
    return { ...only, label: node.key ? `${node.label}.${only.label}` : only.label };
  }
  node.children = folded(children);
  return node;
}

function folded(children) {
  const groups = [];
  for (const child of children) {
    const last = groups.at(-1);
    if (last && /^\d+(\.|$)/.test(child.label) && signature(last[0]) === signature(child)) last.push(child);
    else groups.push([child]);
  }
  return groups.flatMap((group) => (group.length < 3 ? group : [foldOf(group)]));
}

function foldOf(group) {
  const sum = (key) => group.reduce((total, node) => total + node[key], 0);
  return {
    key: `${group[0].key}…`, label: `${group[0].label} – ${group.at(-1).label}`, times: group.length, children: group,
    count: sum("count"), before: sum("before"), after: sum("after"),
  };
}

function signature(node) {
  node.signature ??= `${node.label.replace(/^\d+/, "#")} ${node.count} ${node.before} ${node.after} (${node.children.map((c) => c.label + signature(c)).join()})`;
  return node.signature;
}

function levelsOfTree(root) {
  const levels = [[root]];
  while (levels.at(-1).length) levels.push(levels.at(-1).flatMap((node) => node.children));
  return levels;
}
