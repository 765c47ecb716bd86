// The one box that says what the pointer, or the keyboard, is on.

const tooltip = html("div", { class: "tooltip", role: "tooltip", id: "tooltip", hidden: true });

function showTooltip(x, y, ...content) {
  tooltip.replaceChildren(...content.flat().filter(Boolean));
  tooltip.hidden = false;
  const { width, height } = tooltip.getBoundingClientRect();
  const left = x + 16 + width > innerWidth ? x - 16 - width : x + 16;
  const top = y + 16 + height > innerHeight ? y - 16 - height : y + 16;
  tooltip.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
  tooltip.style.top = `${Math.max(4, top)}px`;
}

function hideTooltip() {
  tooltip.hidden = true;
}

function tooltipRows(rows) {
  return html("table", {}, rows.map(([name, value]) =>
    html("tr", {}, html("td", {}, name), html("td", { class: "number" }, value))));
}
