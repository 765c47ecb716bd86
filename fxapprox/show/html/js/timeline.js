// Two charts side by side, on one scale: memory over forward and backward, plain torch.compile and this plan.

const CHART = { height: 300, left: 66, right: 10, top: 24, bottom: 40 };

function drawTimelines(view) {
  const charts = [["plain torch.compile", view.plain], ["this plan", view.plan]].map(([title, timeline]) => {
    const levels = levelsOf(timeline);
    return { title, timeline, levels, peak: highest(levels), at: null };
  });
  if (!charts.every((chart) => chart.timeline.moments.length)) {
    body("memory").replaceChildren(html("p", { class: "empty" }, "no kernels: there is nothing to draw"));
    return () => {};
  }
  const most = Math.max(...charts.map((chart) => chart.levels.total[chart.peak]), 1);
  const panels = charts.map((chart) => html("div", { class: "chart" }));
  const same = html("input", { type: "checkbox", checked: true, onchange: () => draw() });
  const legend = legendOf(view);
  legend.append(html("li", { class: "scale" }, html("label", {}, same, " same scale")));
  body("memory").replaceChildren(legend, html("div", { class: "charts" }, panels));
  const draw = () => charts.forEach((chart, i) => {
    const own = Math.max(chart.levels.total[chart.peak], 1);
    drawChart(panels[i], chart, same.checked ? most : own, i && same.checked ? charts[0] : null);
  });
  draw();
  return draw;
}

function legendOf(view) {
  const area = (kind) => svg("svg", { viewBox: "0 0 18 14", "aria-hidden": "true" }, svg("defs", {}, hatch("legend")),
    svg("rect", { class: `area-${kind}`, width: 18, height: 14, style: kind === "temporary" ? "fill: url(#hatch-legend)" : null }));
  const items = [...STACK].reverse().map((kind) => html("li", {}, area(kind), STACK_NAMES[kind]));
  const roles = new Set(view.plan.moments.map((moment) => moment[3]));
  const mark = (shape, text) => html("li", {}, svg("svg", { viewBox: "0 0 18 14", "aria-hidden": "true" }, shape), text);
  if (roles.has("codec") || view.plan.codes.length) items.push(mark(svg("path", { class: "mark-codec", d: "M9 1V13" }), "encodes or decodes"));
  if (roles.has("again")) items.push(mark(svg("rect", { class: "mark-again", y: 4, width: 18, height: 6 }), "forward's operator, run again"));
  if (view.plan.boundaries.length) items.push(mark(svg("path", { class: "mark-boundary", d: "M9 2L15 12H3Z" }), "checkpoint boundary"));
  return html("ul", { class: "legend" }, items);
}

function hatch(name) {
  return svg("pattern", { id: `hatch-${name}`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
    svg("rect", { width: 5, height: 5, style: "fill: var(--temporary); opacity: 0.45" }),
    svg("rect", { width: 2.2, height: 5, style: "fill: var(--temporary)" }));
}

function drawChart(panel, chart, most, plain) {
  const { timeline, levels, peak } = chart;
  const width = Math.max(panel.clientWidth, 280), count = timeline.moments.length;
  const inner = { width: width - CHART.left - CHART.right, height: CHART.height - CHART.top - CHART.bottom };
  const x = (at) => CHART.left + (inner.width * at) / count;
  const y = (bytes) => CHART.top + inner.height * (1 - bytes / most);
  const name = chart.title.replace(/\W+/g, "-");
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${CHART.height}`, height: CHART.height, tabindex: 0, role: "slider", "aria-orientation": "horizontal",
    "aria-label": `memory of ${chart.title}, by moment; peak ${bytesText(levels.total[peak])}`,
    "aria-valuemin": 1, "aria-valuemax": count, "aria-valuenow": peak + 1, "aria-valuetext": momentText(chart, peak),
  }, svg("defs", {}, hatch(name)));
  picture.append(...gridOf(width, y, most), ...areasOf(levels, x, y, inner.width, name));
  picture.append(...marksOf(timeline, x, inner.width));
  if (plain) picture.append(...plainPeakOf(plain, levels.total[peak], width, y));
  picture.append(...halvesOf(timeline, x), ...peakOf(chart, x, y, width));
  picture.append(svg("g", { class: "pointer" }));
  panel.replaceChildren(html("h3", {}, chart.title, html("span", { class: "quiet" }, ` · peak ${bytesText(levels.total[peak])}`)), picture);
  listen(picture, chart, { x, y, count });
}

function gridOf(width, y, most) {
  const step = 2 ** Math.ceil(Math.log2(most / 5));
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step).flatMap((bytes) => [
    svg("line", { class: bytes ? "gridline" : "axis", x1: CHART.left, x2: width - CHART.right, y1: y(bytes), y2: y(bytes) }),
    svg("text", { x: CHART.left - 6, y: y(bytes) + 4, "text-anchor": "end" }, bytesText(bytes).replace(".0 ", " ")),
  ]);
}

function areasOf(levels, x, y, width, name) {
  const columns = columnsOf(levels, width);
  const floor = new Float64Array(columns.length);
  return STACK.map((kind) => {
    const below = Array.from(floor);
    columns.forEach((column, i) => (floor[i] += levels[kind][column.at]));
    const upper = columns.map((c, i) => `${x(c.from)} ${y(floor[i])}H${x(c.to)}`).join("L");
    const lower = columns.map((c, i) => `${x(c.to)} ${y(below[i])}H${x(c.from)}`).reverse().join("L");
    const style = kind === "temporary" ? `fill: url(#hatch-${name})` : null;
    return svg("path", { class: `area-${kind}`, d: `M${upper}L${lower}Z`, style });
  });
}

function marksOf(timeline, x, width) {
  const base = CHART.height - CHART.bottom;
  const codecs = [], again = [];
  const least = Math.max(width / timeline.moments.length, 1);
  const coded = new Set(timeline.codes.map(([at]) => at));
  timeline.moments.forEach(([, , , role], at) => {
    if (role === "codec" || coded.has(at)) codecs.push(`M${x(at + 0.5)} ${base + 2}V${base + 8}`);
    if (role === "again") again.push(`M${x(at)} ${base + 10}h${least}v4h${-least}Z`);
  });
  const triangles = timeline.boundaries.map(([at, value]) =>
    svg("path", { class: "mark-boundary", d: `M${x(at + 0.5)} ${base + 2}l6 10h-12Z` }, svg("title", {}, `checkpoint boundary ${value}`)));
  return [
    svg("path", { class: "mark-again", d: again.join("") }), svg("path", { class: "mark-codec", d: codecs.join(""), style: `stroke-width: ${Math.max(0.4, Math.min(1.5, least * 0.6))}` }), ...triangles,
  ];
}

function halvesOf(timeline, x) {
  const between = x(timeline.forward), base = CHART.height - CHART.bottom;
  const middle = (from, to) => (x(from) + x(to)) / 2;
  const text = (at, label) => svg("text", { x: at, y: CHART.height - 10, "text-anchor": "middle" }, label);
  return [
    svg("line", { class: "between", x1: between, x2: between, y1: CHART.top - 8, y2: base + 16 }),
    timeline.forward ? text(middle(0, timeline.forward), "forward →") : null,
    timeline.forward < timeline.moments.length ? text(middle(timeline.forward, timeline.moments.length), "backward →") : null,
  ].filter(Boolean);
}

function peakOf(chart, x, y, width) {
  const at = x(chart.peak + 0.5), level = chart.levels.total[chart.peak];
  const end = at > width - 130;
  return [
    svg("circle", { class: "cursordot", cx: at, cy: y(level), r: 4 }),
    svg("text", { class: "strong halo", x: at + (end ? -9 : 9), y: Math.max(y(level) - 6, 13), "text-anchor": end ? "end" : "start" }, `peak ${bytesText(level)}`),
  ];
}

function plainPeakOf(plain, own, width, y) {
  const level = plain.levels.total[plain.peak];
  return [
    svg("line", { class: "plainpeak", x1: CHART.left, x2: width - CHART.right, y1: y(level), y2: y(level) }),
    own > 0.85 * level ? null : svg("text", { x: width - CHART.right, y: y(level) - 5, "text-anchor": "end" }, `plain torch.compile's peak ${bytesText(level)}`),
  ].filter(Boolean);
}

// The pointer, or the arrow keys, choose a moment.
function listen(picture, chart, scale) {
  const pointer = picture.querySelector(".pointer");
  const show = (at, clientX, clientY) => {
    chart.at = at;
    const cx = scale.x(at + 0.5), level = chart.levels.total[at];
    pointer.replaceChildren(
      svg("line", { class: "cursor", x1: cx, x2: cx, y1: CHART.top - 8, y2: CHART.height - CHART.bottom }),
      svg("circle", { class: "cursordot", cx, cy: scale.y(level), r: 3.5 }));
    picture.setAttribute("aria-valuenow", at + 1);
    picture.setAttribute("aria-valuetext", momentText(chart, at));
    const place = picture.getBoundingClientRect();
    showTooltip(clientX ?? place.left + (cx * place.width) / picture.viewBox.baseVal.width, clientY ?? place.top + scale.y(level), momentTip(chart, at));
  };
  const hide = () => { pointer.replaceChildren(); hideTooltip(); };
  picture.addEventListener("pointermove", (event) => {
    const place = picture.getBoundingClientRect();
    const at = ((event.clientX - place.left) * picture.viewBox.baseVal.width) / place.width - CHART.left;
    const share = at / (scale.x(scale.count) - CHART.left);
    show(Math.max(0, Math.min(scale.count - 1, Math.floor(share * scale.count))), event.clientX, event.clientY);
  });
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const at = chart.at ?? chart.peak, leap = Math.max(1, Math.round(scale.count / 20));
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at + leap, PageDown: at - leap, Home: 0, End: scale.count - 1, p: chart.peak }[event.key];
    if (event.key === "Escape") hide();
    if (next === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(scale.count - 1, next)));
  });
}

function momentText(chart, at) {
  const { timeline, levels } = chart;
  const [name, op, module] = timeline.moments[at];
  const largest = largestAt(timeline, at, 1)[0];
  const where = module ? ` in ${module}` : "";
  const half = at < timeline.forward ? "forward" : "backward";
  return `${half}, ${op} ${name}${where}: ${bytesText(levels.total[at])}` + (largest ? `, largest ${largest[0]}` : "");
}

function momentTip(chart, at) {
  const { timeline, levels } = chart;
  const [name, op, module, role] = timeline.moments[at];
  const does = { operator: "", again: " · run again", codec: " · part of a code" }[role];
  const codes = timeline.codes.filter(([moment]) => moment === at).map(([, verb, value]) => `${verb} ${value}`);
  const half = at < timeline.forward ? "forward" : "backward";
  const swatch = (kind) => html("span", { class: `swatch ${kind}` });
  return [
    html("div", {}, html("b", {}, bytesText(levels.total[at])), html("span", { class: "quiet" }, ` · ${half}, kernel ${at + 1} of ${timeline.moments.length}${does}`)),
    html("div", {}, html("code", {}, `${op} ${name}`), module ? html("span", { class: "quiet" }, ` in ${module}`) : null),
    codes.length ? html("div", {}, codes.slice(0, 4).join(", ") + (codes.length > 4 ? " …" : "")) : null,
    tooltipRows(STACK.filter((kind) => levels[kind][at]).map((kind) => [html("span", {}, swatch(kind), STACK_NAMES[kind]), bytesText(levels[kind][at])])),
    html("div", { class: "quiet", style: "margin-top: 0.4rem" }, "largest alive"),
    tooltipRows(largestAt(timeline, at, 5).map(([value, kind, bytes, made]) =>
      [html("span", {}, swatch(STACK_OF[kind]), html("code", {}, value), html("span", { class: "quiet" }, ` ${KIND_NAMES[kind]}${made ? ` of ${made}` : ""}`)), bytesText(bytes)])),
  ];
}
