// A graph as a tree of modules with boxes as leaves, and its layout: open modules around what is in them.

const BETWEEN = 90; // forward and backward
const PAD = { side: 14, top: 30, bottom: 14 };

// The boxes of a stage; what it returns is no box: every gradient and every saved value would lead there.
function boxesOf(graph, stage) {
  const { fields, texts } = graph;
  const boxes = graph.stages[stage].boxes.map((row, at) =>
    Object.fromEntries([["at", at], ...fields.map((field, i) => [field, field === "bytes" ? row[i] : texts[row[i]]])]));
  const inside = boxes.filter((box) => box.kind !== "output");
  if (stage !== "backward") return inside;
  return inside.map((box) => ({ ...box, half: box.group === "none" ? "gradients" : "values of forward, again" }));
}

const UPWARD = new Set(["backward", "gradients"]); // halves that are drawn from below

// {key, label, children, boxes below, box}; halves at the top where the graph has both
function graphTree(boxes) {
  const root = moduleNode("", "");
  const halves = new Set(boxes.map((box) => box.half));
  for (const box of boxes) {
    root.boxes.push(box);
    let node = root;
    if (halves.size > 1) (node = childOf(root, box.half, true)).boxes.push(box);
    for (const name of box.module ? box.module.split(".") : []) {
      node = childOf(node, name, false);
      node.boxes.push(box);
    }
    node.children.push({ key: `#${box.at}`, label: shortOp(box), box, boxes: [box], children: [] });
  }
  return gathered(inOrder(joinChains(root)));
}

const FEWEST = 3; // loose operators in a row that become a group

// Beside modules, operators of no module in a row are one group: a loss, an interpolation, a mask.
function gathered(node) {
  const modules = node.children.some((child) => !child.box);
  const runs = [];
  for (const child of node.children.map(gathered)) {
    const last = runs.at(-1);
    const input = child.box?.kind === "input";
    if (child.box && last && last[0].box && (last[0].box.kind === "input") === input) last.push(child); else runs.push([child]);
  }
  node.children = runs.flatMap((run) => (modules && run.length >= FEWEST ? [groupOf(node, run)] : run));
  return node;
}

function groupOf(node, run) {
  const label = run[0].box.kind === "input" ? "inputs" : `${run[0].label} … ${run.at(-1).label}`;
  return { ...moduleNode(`${node.key}/${run[0].key}…`, label), children: run, boxes: run.flatMap((child) => child.boxes), group: true };
}

// Modules stand where their first operator does: inputs come first in a graph, whoever reads them.
function inOrder(node) {
  const at = (child) => (child.boxes.find((box) => box.kind !== "input") || child.boxes[0]).at;
  node.children = node.children.map(inOrder).map((child) => [at(child), child]).sort((a, b) => a[0] - b[0]).map(([, child]) => child);
  return node;
}

function moduleNode(key, label) {
  return { key, label, children: [], boxes: [], named: new Map(), box: null };
}

function childOf(node, name, half) {
  if (!node.named.has(name)) {
    const child = Object.assign(moduleNode(`${node.key}/${name}`, name), { half });
    node.named.set(name, child);
    node.children.push(child);
  }
  return node.named.get(name);
}

// A module whose only content is another module is one with it.
function joinChains(node) {
  node.children = node.children.map(joinChains);
  const [only] = node.children;
  if (node.key && !node.half && node.children.length === 1 && !only.box) {
    return { ...only, key: node.key, label: `${node.label}.${only.label}`, boxes: node.boxes };
  }
  return node;
}

function shortOp(box) {
  if (/quantize/.test(box.kind)) return box.kind;
  if (box.kind === "input") return ["input", "saved", "gradient"].includes(box.op) ? box.name : box.op.replace(`${box.module}.`, "");
  return box.op.replace(/^(aten|prims)\./, "");
}

// Opens modules of modules, level by level, as long as not more than so many things are to be seen; with Infinity all
// modules.
function openedAtFirst(root, most) {
  const open = new Set();
  let level = [root], shown = 1;
  while (level.length) {
    const outer = level.filter((node) => node === root || node.half || most === Infinity || node.children.some((child) => !child.box));
    shown += outer.reduce((sum, node) => sum + node.children.length, 0);
    if (shown > most && !outer.some((node) => node === root || node.half)) break;
    outer.forEach((node) => open.add(node.key));
    level = outer.flatMap((node) => node.children.filter((child) => !child.box));
  }
  return open;
}

// Lays out what is to be seen. Returns {items, edges}: items are {node, x, y, width, height, open}, outer ones first;
// edges are {from, to: items, points, faint}: inputs and constants that many modules read would hide the rest.
function graphLayout(root, boxEdges, open) {
  const parents = new Map(), seen = new Map(); // of each node its parent; of each box the node that stands for it
  const visit = (node, parent, shown) => {
    parents.set(node, parent);
    const own = shown ?? (open.has(node.key) && !node.box ? null : node);
    if (node.box) seen.set(node.box.at, own);
    node.children.forEach((child) => visit(child, node, own));
  };
  visit(root, null, null);
  const made = new Set(boxEdges.map(([, to]) => to)); // what is not is an input or a constant
  const constants = new Set(root.boxes.filter((box) => box.kind === "operator" && !made.has(box.at)).map((box) => box.at));
  const pairs = new Map();
  for (const [from, to] of boxEdges) {
    const a = seen.get(from), b = seen.get(to);
    if (!a || !b || a === b) continue;
    const key = `${a.key} ${b.key}`;
    const aside = (constants.has(from) && !a.box) || (!made.has(from) && halfOf(a) !== halfOf(b));
    pairs.set(key, [a, b, aside && (pairs.get(key)?.[2] ?? true)]);
  }
  const inside = new Map(); // of an open module: [[child, child]]
  for (const [a, b, aside] of pairs.values()) {
    if (aside) continue;
    const [module, x, y] = meeting(a, b, parents);
    if (!inside.has(module)) inside.set(module, new Map());
    inside.get(module).set(`${x.key} ${y.key}`, [x, y]);
  }
  const laid = layModule(root, inside, open, false);
  const items = new Map(), routes = new Map();
  spread(laid, 0, 0, items, routes);
  const edges = [...pairs.values()].map(([a, b, faint]) => ({ from: items.get(a), to: items.get(b), faint, points: routes.get(`${a.key} ${b.key}`) || [] }));
  return { items: [...items.values()].filter((item) => item.node !== root), edges };
}

function halfOf(node) {
  return node.boxes[0].half;
}

// The innermost module that holds both, and the children of it that hold one each.
function meeting(a, b, parents) {
  const above = new Map();
  for (let node = a, below = null; node; below = node, node = parents.get(node)) above.set(node, below);
  for (let node = b, below = null; node; below = node, node = parents.get(node)) {
    if (above.has(node)) return [node, above.get(node), below];
  }
  throw new Error("two trees");
}

function layModule(node, inside, open, flipped) {
  if (node.box || !open.has(node.key)) return { node, ...sizeOf(node), open: false, children: [] };
  const upside = node.half ? UPWARD.has(node.label) : flipped;
  const children = node.children.map((child) => layModule(child, inside, open, upside));
  const place = new Map(node.children.map((child, i) => [child, i]));
  const halves = node.children.some((child) => child.half);
  const edges = halves ? [] : [...(inside.get(node) || new Map()).values()].map(([a, b]) => [place.get(a), place.get(b)]);
  const laid = halves ? sideBySide(children) : layeredLayout(children, edges);
  const flip = (point, height) => (upside ? { x: point.x, y: laid.height - point.y - height } : point);
  children.forEach((child, i) => Object.assign(child, flip(laid.places[i], child.height)));
  const names = edges.map(([from, to]) => `${node.children[from].key} ${node.children[to].key}`);
  const routes = names.map((name, i) => [name, laid.bends[i].map((point) => flip(point, 0))]);
  const bare = !node.key;
  const pad = bare ? { side: 0, top: 0, bottom: 0 } : PAD;
  const width = Math.max(laid.width, bare ? 0 : 7.5 * node.label.length) + 2 * pad.side;
  return { node, open: true, children, routes, pad, width, height: laid.height + pad.top + pad.bottom };
}

// Forward beside backward: what forward saves lies about as high as what reads it.
function sideBySide(children) {
  const height = Math.max(...children.map((child) => child.height));
  const traced = children.some((child) => child.node.label === "backward"); // the loss is at the bottom of both
  let x = 0;
  const places = children.map((child) => {
    const place = { x, y: traced ? height - child.height : 0 };
    x += child.width + BETWEEN;
    return place;
  });
  return { places, bends: [], width: x - BETWEEN, height };
}

function spread(laid, x, y, items, routes) {
  items.set(laid.node, { node: laid.node, x, y, width: laid.width, height: laid.height, open: laid.open });
  if (!laid.open) return;
  const left = x + laid.pad.side, top = y + laid.pad.top;
  for (const [name, points] of laid.routes) routes.set(name, points.map((point) => ({ x: point.x + left, y: point.y + top })));
  for (const child of laid.children) spread(child, child.x + left, child.y + top, items, routes);
}

function sizeOf(node) {
  const longest = Math.max(...linesOf(node).map((line, i) => line.length * (i ? 6.1 : 7.3)));
  return { width: Math.min(Math.max(longest + (node.box && node.box.group !== "none" ? 44 : 26), 84), 260), height: node.box ? 40 : 54 };
}

function linesOf(node) {
  const { box } = node;
  if (!box) return [`▸ ${node.label}`, countText(node.boxes.length, "operator")];
  const shape = box.shape.join("×");
  const size = box.bytes ? bytesText(box.bytes) : "";
  return [/quantize/.test(box.kind) ? `${box.kind} · ${box.op}` : node.label, [shape, size].filter(Boolean).join(" · ")];
}
