// The graph: modules that open and close, boxes coloured by storage, moved and zoomed by mouse and keyboard.

const SHOWN_AT_FIRST = 60;
const MOST_SHOWN = 4000; // boxes: more than that takes the browser seconds to draw

function drawGraph(views, groups) {
  const several = views.length > 1;
  const offered = views.flatMap((view) => Object.entries(view.graph.stages).map(([key, stage]) => ({ view, key, title: several ? `${view.name}: ${stage.title}` : stage.title })));
  if (!offered.length) {
    body("graph").replaceChildren(html("p", { class: "empty" }, "there is no graph to draw"));
    return;
  }
  const canvas = svg("svg", { tabindex: 0, role: "application", "aria-label": "graph; arrow keys move, plus and minus zoom, Enter goes to the first box" });
  const status = html("span", { class: "count", role: "status" });
  const legend = html("div");
  const picture = { canvas, status, groups, scene: svg("g"), scale: 1, x: 0, y: 0 };
  canvas.append(svg("defs", {}, svg("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" },
    svg("path", { d: "M0 0.5L8 4L0 7.5Z", style: "fill: var(--quiet)" }))), picture.scene);
  const select = html("select", { name: "stage", onchange: () => choose(offered[select.value]) }, offered.map(({ title }, i) => html("option", { value: i }, title)));

  function choose({ view, key }) {
    const boxes = boxesOf(view.graph, key);
    picture.root = graphTree(boxes);
    picture.edges = view.graph.stages[key].edges;
    picture.decisions = view.decisions;
    hideTooltip();
    picture.open = openedAtFirst(picture.root, SHOWN_AT_FIRST);
    legend.replaceChildren(legendOfGroups(boxes, groups));
    layOut(picture);
    fit(picture);
  }

  const button = (text, label, action) => html("button", { type: "button", "aria-label": label, onclick: action }, text);
  body("graph").replaceChildren(
    html("div", { class: "filters" }, html("label", {}, "show", select),
      html("input", { type: "search", name: "find", placeholder: "find a value or an operator, Enter", "aria-label": "Find in the graph", onkeydown: (event) => { if (event.key === "Enter") find(picture, event.target.value); } }),
      button("open all", "open all modules", () => openAll(picture)), button("close", "close all modules", () => { picture.open = openedAtFirst(picture.root, 1); layOut(picture); fit(picture); }),
      button("+", "zoom in", () => zoom(picture, 1.3)), button("−", "zoom out", () => zoom(picture, 1 / 1.3)), button("fit", "show all of it", () => fit(picture, true)),
      status),
    legend, html("div", { class: "canvas" }, canvas));
  listenToGraph(picture);
  choose(offered[0]);
}

function legendOfGroups(boxes, groups) {
  const used = new Set(boxes.map((box) => box.group));
  return html("ul", { class: "legend" }, Object.entries(groups).filter(([key]) => used.has(key) && key !== "none").map(([key, name]) => html("li", {}, storageSign(key), name)));
}

// Drawing

function layOut(picture) {
  const { items, edges } = graphLayout(picture.root, picture.edges, picture.open);
  picture.items = items;
  picture.near = new Map(); // {key of a node: [[key of the other node, edge]]}
  const frames = items.filter((item) => item.open), boxes = items.filter((item) => !item.open);
  const note = (from, to, path) => { if (!picture.near.has(from)) picture.near.set(from, []); picture.near.get(from).push([to, path]); };
  const paths = edges.map(({ from, to, points, faint }) => {
    const path = svg("path", { class: faint ? "edge faint" : "edge", d: edgePath(from, to, points), "marker-end": "url(#tip)" });
    note(from.node.key, { key: to.node.key, reads: false }, path);
    note(to.node.key, { key: from.node.key, reads: true }, path);
    return path;
  });
  picture.drawn = new Map(boxes.map((item) => [item.node.key, drawBox(item)]));
  picture.scene.replaceChildren(...frames.flatMap((item) => drawFrame(item)), ...paths, ...picture.drawn.values());
  picture.width = Math.max(...items.map((item) => item.x + item.width), 1);
  picture.height = Math.max(...items.map((item) => item.y + item.height), 1);
  picture.status.textContent = `${boxes.length.toLocaleString("en")} shown, of ${countText(picture.root.boxes.length, "operator and input", "operators and inputs")}`;
}

function edgePath(from, to, points) {
  const start = { x: from.x + from.width / 2, y: from.y + from.height / 2 }, end = { x: to.x + to.width / 2, y: to.y + to.height / 2 };
  if (halfOf(from.node) !== halfOf(to.node)) { // from side to side
    const right = end.x > start.x;
    const a = { x: right ? from.x + from.width : from.x, y: start.y }, b = { x: right ? to.x : to.x + to.width, y: end.y };
    const middle = (a.x + b.x) / 2;
    return `M${a.x} ${a.y}C${middle} ${a.y} ${middle} ${b.y} ${b.x} ${b.y}`;
  }
  const down = end.y > start.y;
  start.y = down ? from.y + from.height : from.y;
  end.y = down ? to.y : to.y + to.height;
  const all = [start, ...points, end];
  return all.slice(1).reduce((path, point, i) => {
    const last = all[i], middle = (last.y + point.y) / 2;
    return `${path}C${last.x} ${middle} ${point.x} ${middle} ${point.x} ${point.y}`;
  }, `M${start.x} ${start.y}`);
}

function drawFrame(item) {
  return [
    svg("rect", { class: "frame", x: item.x, y: item.y, width: item.width, height: item.height, rx: 8 }),
    svg("text", { class: "frame-label", x: item.x + 12, y: item.y + 19, "data-close": item.node.half ? null : item.node.key }, (item.node.half ? "" : "▾ ") + item.node.label),
  ];
}

function drawBox(item) {
  const { node, x, y, width, height } = item;
  const [first, second] = linesOf(node);
  const { box } = node;
  const kind = !box ? "module" : /quantize/.test(box.kind) ? "codec" : box.kind;
  const group = box && box.group !== "none" ? box.group : null;
  const room = width - (group ? 30 : 16);
  const element = svg("g", {
    class: `box ${kind}`, transform: `translate(${x} ${y})`, "data-key": node.key, tabindex: -1, role: "button",
    "aria-label": boxText(node), "aria-expanded": box ? null : "false", style: group ? `--group: var(--${group})` : null,
  }, svg("rect", { width, height, rx: kind === "input" ? height / 2 : box ? 5 : 8 }));
  if (kind === "boundary") element.append(svg("rect", { x: 3, y: 3, width: width - 6, height: height - 6, rx: 3, style: "fill: none" }));
  if (group) element.append(svg("path", { class: "tab", d: `M0 5a5 5 0 0 1 5-5h15v${height}h-15a5 5 0 0 1-5-5Z` }), svg("text", { class: "glyph", x: 10, y: height / 2 + 4, "text-anchor": "middle" }, SIGNS[group]));
  const left = group ? 26 : 10;
  element.append(svg("text", { x: left, y: 17 }, clipped(first, room / 7)), svg("text", { class: "small", x: left, y: 32 }, clipped(second, room / 5.7)));
  if (!box) element.append(...sharesOf(node, width));
  return element;
}

function clipped(text, most) {
  return text.length > most + 1 ? `${text.slice(0, Math.max(1, Math.floor(most) - 1))}…` : text;
}

// How the values of a closed module are stored, by number.
function sharesOf(node, width) {
  const counts = {};
  for (const box of node.boxes) if (box.group !== "none") counts[box.group] = (counts[box.group] || 0) + 1;
  const sum = Object.values(counts).reduce((a, b) => a + b, 0);
  let x = 10;
  return Object.keys(SIGNS).filter((group) => counts[group]).map((group) => {
    const long = ((width - 20) * counts[group]) / sum;
    const bar = svg("rect", { x, y: 40, width: long, height: 6, style: `fill: var(--${group}); stroke: none` });
    x += long;
    return bar;
  });
}

function boxText(node) {
  const { box } = node;
  if (!box) return `module ${node.label}, ${countText(node.boxes.length, "operator")}, closed`;
  return [box.kind, box.op, box.name, box.dtype ? typeText(box) : "", box.bytes ? bytesText(box.bytes) : "", box.storage].filter(Boolean).join(", ");
}

function boxTip(picture, node) {
  const { box } = node;
  if (!box) return moduleTip(picture, node);
  const kind = { operator: box.op, input: "input", output: "output", boundary: `checkpoint boundary · ${box.op}`, quantize: `quantize · ${box.op}`, dequantize: `dequantize · ${box.op}` }[box.kind];
  return [
    html("div", {}, html("b", {}, box.name), html("span", { class: "quiet" }, ` ${kind}`)),
    box.dtype ? html("div", {}, html("code", {}, typeText(box)), ` · ${bytesText(box.bytes)}`) : null,
    box.storage ? html("div", { style: "margin-top: 0.3rem" }, storageText(box.group, box.storage)) : null,
    box.reason ? html("div", {}, box.reason) : null,
    box.module || box.source ? html("div", { class: "quiet", style: "margin-top: 0.3rem" }, [box.module, box.source].filter(Boolean).join(" · ")) : null,
  ];
}

function moduleTip(picture, node) {
  const names = new Set(node.boxes.map((box) => box.name));
  const decisions = picture.decisions.filter((decision) => names.has(decision.value));
  const sum = (key) => bytesText(decisions.reduce((total, decision) => total + decision[key], 0));
  const counts = new Map();
  for (const { group } of node.boxes) if (group !== "none") counts.set(group, (counts.get(group) || 0) + 1);
  return [
    html("div", {}, html("b", {}, node.label), html("span", { class: "quiet" }, ` ${countText(node.boxes.length, "operator")}`)),
    decisions.length ? html("div", {}, `stored for backward: ${sum("after")}; plain torch.compile: ${sum("before")}`) : null,
    tooltipRows([...counts].map(([group, count]) => [storageText(group, picture.groups[group]), countText(count, "value")])),
  ];
}

// Moving about

function place(picture) {
  picture.scene.setAttribute("transform", `translate(${picture.x} ${picture.y}) scale(${picture.scale})`);
}

function fit(picture, all) {
  const { width, height } = picture.canvas.getBoundingClientRect();
  const whole = Math.min((width - 40) / picture.width, (height - 40) / picture.height, 1.15);
  picture.scale = all ? whole : Math.max(whole, 0.55);
  picture.x = (width - picture.width * picture.scale) / 2;
  if (picture.x < 20 && !all) picture.x = 20;
  picture.y = picture.height * picture.scale > height ? 20 : (height - picture.height * picture.scale) / 2;
  place(picture);
}

function zoom(picture, factor, x, y) {
  const { width, height } = picture.canvas.getBoundingClientRect();
  const scale = Math.max(0.02, Math.min(4, picture.scale * factor));
  const cx = x ?? width / 2, cy = y ?? height / 2;
  picture.x = cx - ((cx - picture.x) * scale) / picture.scale;
  picture.y = cy - ((cy - picture.y) * scale) / picture.scale;
  picture.scale = scale;
  place(picture);
}

function centre(picture, key) {
  const item = picture.items.find((other) => other.node.key === key);
  const { width, height } = picture.canvas.getBoundingClientRect();
  picture.x = width / 2 - (item.x + item.width / 2) * picture.scale;
  picture.y = height / 2 - (item.y + item.height / 2) * picture.scale;
  place(picture);
}

// The keys of a module in forward and in backward.
function twinsOf(picture, key) {
  const halves = picture.root.children.filter((node) => node.half);
  const own = halves.find((half) => key.startsWith(half.key));
  return own ? halves.map((half) => half.key + key.slice(own.key.length)) : [key];
}

// Opens or closes a module, in forward and in backward; what was under the pointer stays there.
function toggleModule(picture, key) {
  const before = picture.items.find((item) => item.node.key === key);
  const opens = !picture.open.has(key);
  for (const twin of twinsOf(picture, key)) opens ? picture.open.add(twin) : picture.open.delete(twin);
  layOut(picture);
  const after = picture.items.find((item) => item.node.key === key);
  picture.x += (before.x + (before.open ? 0 : before.width / 2) - after.x - (after.open ? after.width / 2 : 0)) * picture.scale;
  picture.y += (before.y - after.y) * picture.scale;
  place(picture);
  hideTooltip();
}

function openAll(picture) {
  const boxes = picture.root.boxes.length;
  if (boxes > MOST_SHOWN) {
    picture.status.textContent = `${countText(boxes, "operator")} are too many at once: open modules one by one`;
    return;
  }
  picture.open = openedAtFirst(picture.root, Infinity);
  layOut(picture);
  fit(picture, true);
}

function find(picture, text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return;
  const found = picture.root.boxes.filter((box) => `${box.name} ${box.op} ${box.module}`.toLowerCase().includes(wanted));
  picture.found = picture.wanted === wanted ? (picture.found + 1) % Math.max(found.length, 1) : 0;
  picture.wanted = wanted;
  if (!found.length) { picture.status.textContent = `nothing named ${text}`; return; }
  const box = found[picture.found];
  const path = pathTo(picture.root, box);
  path.filter((node) => !node.box).flatMap((node) => twinsOf(picture, node.key)).forEach((key) => picture.open.add(key));
  layOut(picture);
  picture.scale = Math.max(picture.scale, 0.8);
  centre(picture, `#${box.at}`);
  highlight(picture, `#${box.at}`);
  picture.status.textContent = `${picture.found + 1} of ${found.length}: ${box.name}`;
}

function pathTo(node, box) {
  if (node.box === box) return [node];
  const child = node.children.find((other) => other.boxes.includes(box));
  return [node, ...pathTo(child, box)];
}

function highlight(picture, key) {
  picture.scene.querySelectorAll(".near").forEach((element) => element.classList.remove("near"));
  picture.drawn.get(key)?.classList.add("near");
  for (const [{ key: other }, path] of picture.near.get(key) || []) {
    path.classList.add("near");
    picture.drawn.get(other)?.classList.add("near");
  }
}

function listenToGraph(picture) {
  const { canvas, scene } = picture;
  const nodeAt = (element) => {
    const key = element.closest?.(".box")?.dataset.key;
    return key === undefined ? null : picture.items.find((item) => item.node.key === key).node;
  };
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => { drag = { x: event.clientX, y: event.clientY, moved: false }; });
  addEventListener("pointerup", () => { setTimeout(() => (drag = null)); });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (drag.moved || Math.hypot(dx, dy) > 4) {
        Object.assign(drag, { x: event.clientX, y: event.clientY, moved: true });
        picture.x += dx; picture.y += dy;
        place(picture);
        hideTooltip();
      }
      return;
    }
    const node = nodeAt(event.target);
    if (node) showTooltip(event.clientX, event.clientY, boxTip(picture, node)); else hideTooltip();
  });
  canvas.addEventListener("pointerleave", hideTooltip);
  scene.addEventListener("pointerover", (event) => { const node = nodeAt(event.target); if (node) highlight(picture, node.key); });
  scene.addEventListener("click", (event) => {
    if (drag?.moved) return;
    const node = nodeAt(event.target);
    if (node && !node.box) toggleModule(picture, node.key);
    const close = event.target.dataset?.close;
    if (close) toggleModule(picture, close);
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    const place = canvas.getBoundingClientRect();
    zoom(picture, Math.exp(-event.deltaY / 300), event.clientX - place.left, event.clientY - place.top);
  }, { passive: false });
  scene.addEventListener("focusin", (event) => {
    const node = nodeAt(event.target);
    if (!node) return;
    const spot = event.target.getBoundingClientRect(), frame = canvas.getBoundingClientRect();
    if (spot.left < frame.left || spot.right > frame.right || spot.top < frame.top || spot.bottom > frame.bottom) centre(picture, node.key);
    highlight(picture, node.key);
    const now = event.target.getBoundingClientRect();
    showTooltip(now.right - 12, now.top, boxTip(picture, node));
  });
  canvas.addEventListener("focusout", hideTooltip);
  canvas.addEventListener("keydown", (event) => { if (graphKey(picture, event, nodeAt(event.target))) event.preventDefault(); });
}

// Whether a key meant something: on the canvas it moves the picture, on a box it goes along the edges.
function graphKey(picture, event, node) {
  const zooms = { "+": 1.3, "=": 1.3, "-": 1 / 1.3 };
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  if (event.key in zooms) zoom(picture, zooms[event.key]);
  else if (event.key === "0") fit(picture, true);
  else if (node) return boxKey(picture, event.key, node);
  else if (event.key === "Enter") picture.drawn.values().next().value?.focus({ preventScroll: true });
  else {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (!step) return false;
    picture.x += step[0]; picture.y += step[1];
    place(picture);
  }
  return true;
}

function boxKey(picture, key, node) {
  const go = (other) => picture.drawn.get(other)?.focus({ preventScroll: true });
  const near = (picture.near.get(node.key) || []).map(([other]) => other);
  const order = [...picture.drawn.keys()], at = order.indexOf(node.key);
  if (key === "Escape") picture.canvas.focus({ preventScroll: true });
  else if (key === "ArrowDown") go(near.find((other) => !other.reads)?.key);
  else if (key === "ArrowUp") go(near.find((other) => other.reads)?.key);
  else if (key === "ArrowRight") go(order[Math.min(at + 1, order.length - 1)]);
  else if (key === "ArrowLeft") go(order[Math.max(at - 1, 0)]);
  else if (key === "Backspace") closeAround(picture, node);
  else if ((key === "Enter" || key === " ") && !node.box) {
    toggleModule(picture, node.key);
    go(picture.items.find((item) => !item.open && node.boxes.includes(item.node.boxes[0]))?.node.key);
  } else return false;
  return true;
}

function closeAround(picture, node) {
  const around = pathTo(picture.root, node.boxes[0]).filter((other) => picture.open.has(other.key) && other.key && !other.half).at(-1);
  if (!around) return;
  toggleModule(picture, around.key);
  picture.drawn.get(around.key)?.focus({ preventScroll: true });
}
