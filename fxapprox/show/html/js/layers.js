// A layered layout (after Sugiyama, Tagawa and Toda 1981): every item below what it reads, few crossings, and edges
// over several layers led around the boxes between.

const GAP = { x: 22, y: 34 };
const MOST_BENDS = 3000; // of all edges together: beyond, edges go straight

// items: [{width, height}] in an order in which most edges point ahead; edges: [[from, to]] by place.
// Returns {places: [{x, y}] of the upper left corners, bends: [[{x, y}]] of each edge, width, height}.
function layeredLayout(items, edges) {
  const ahead = edges.filter(([from, to]) => from < to);
  const rank = ranksOf(items.length, ahead);
  const cells = items.map((item, i) => ({ item: i, width: item.width, height: item.height, rank: rank[i], above: [], below: [] }));
  const routes = routesOf(ahead, rank, cells);
  const layers = layersOf(cells);
  for (let sweep = 0; sweep < 6; sweep++) reorder(layers, sweep % 2 === 0);
  const heights = placeLayers(layers);
  for (let sweep = 0; sweep < 8; sweep++) straighten(layers, sweep % 2 === 0);
  const left = Math.min(...cells.map((cell) => cell.x), 0);
  cells.forEach((cell) => (cell.x -= left));
  return {
    places: items.map((_, i) => ({ x: cells[i].x, y: cells[i].y })),
    bends: edges.map((edge) => (routes.get(`${edge}`) || []).map((cell) => ({ x: cell.x + cell.width / 2, y: cell.y + cell.height / 2 }))),
    width: Math.max(...cells.map((cell) => cell.x + cell.width), 0),
    height: heights,
  };
}

function ranksOf(count, ahead) {
  const rank = new Array(count).fill(0);
  for (const [from, to] of [...ahead].sort((a, b) => a[0] - b[0])) rank[to] = Math.max(rank[to], rank[from] + 1);
  const readers = new Array(count).fill(Infinity);
  for (const [from, to] of ahead) readers[from] = Math.min(readers[from], rank[to]);
  const read = new Set(ahead.map(([, to]) => to));
  // what reads nothing stands just above its first reader
  return rank.map((own, i) => (!read.has(i) && readers[i] !== Infinity ? readers[i] - 1 : own));
}

// Puts a thin cell into every layer that an edge passes, as long as these are not too many.
function routesOf(ahead, rank, cells) {
  const routes = new Map();
  let left = MOST_BENDS;
  for (const [from, to] of ahead) {
    const between = rank[to] - rank[from] - 1;
    const route = [];
    if (between > 0 && between <= left) {
      left -= between;
      for (let at = rank[from] + 1; at < rank[to]; at++) {
        const cell = { item: null, width: 10, height: 1, rank: at, above: [], below: [] };
        cells.push(cell);
        route.push(cell);
      }
    }
    const chain = [cells[from], ...route, cells[to]];
    for (let i = 1; i < chain.length; i++) { chain[i].above.push(chain[i - 1]); chain[i - 1].below.push(chain[i]); }
    routes.set(`${[from, to]}`, route);
  }
  return routes;
}

function layersOf(cells) {
  const layers = [];
  for (const cell of cells) (layers[cell.rank] ??= []).push(cell);
  const filled = layers.filter(Boolean);
  filled.forEach((layer) => layer.forEach((cell, i) => (cell.order = i)));
  return filled;
}

function reorder(layers, down) {
  for (const layer of down ? layers : [...layers].reverse()) {
    for (const cell of layer) {
      const near = down ? cell.above : cell.below;
      cell.wish = near.length ? near.reduce((sum, other) => sum + other.order, 0) / near.length : cell.order;
    }
    layer.sort((a, b) => a.wish - b.wish || a.order - b.order);
    layer.forEach((cell, i) => (cell.order = i));
  }
}

function placeLayers(layers) {
  let y = 0;
  for (const layer of layers) {
    const height = Math.max(...layer.map((cell) => cell.height));
    const width = layer.reduce((sum, cell) => sum + cell.width + GAP.x, -GAP.x);
    let x = -width / 2;
    for (const cell of layer) {
      cell.x = x;
      cell.y = y + (height - cell.height) / 2;
      x += cell.width + GAP.x;
    }
    y += height + GAP.y;
  }
  return Math.max(0, y - GAP.y);
}

// Moves cells under (or over) the middle of their neighbours, as far as those beside them leave room.
function straighten(layers, down) {
  for (const layer of down ? layers : [...layers].reverse()) {
    const wish = layer.map((cell) => {
      const near = down ? cell.above : cell.below;
      const middles = near.map((other) => other.x + other.width / 2).sort((a, b) => a - b);
      return middles.length ? middles[Math.floor((middles.length - 1) / 2)] - cell.width / 2 : cell.x;
    });
    const pressed = (order, sign) => {
      const x = [];
      let edge = -Infinity;
      for (const i of order) {
        const from = sign > 0 ? wish[i] : -wish[i] - layer[i].width;
        x[i] = Math.max(from, edge);
        edge = x[i] + layer[i].width + GAP.x;
      }
      return x.map((value, i) => (sign > 0 ? value : -value - layer[i].width));
    };
    const order = layer.map((_, i) => i);
    const right = pressed(order, 1), left = pressed([...order].reverse(), -1);
    layer.forEach((cell, i) => (cell.x = (right[i] + left[i]) / 2));
  }
}
