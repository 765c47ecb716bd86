// Numbers as text, the same as in Python (amounts.py), and the signs of the storage groups.

const KIB = 1024;

function bytesText(bytes) {
  let number = bytes;
  for (const unit of ["B", "KiB", "MiB"]) {
    if (Math.abs(number) < KIB) return unit === "B" ? `${Math.round(number)} B` : `${number.toFixed(1)} ${unit}`;
    number /= KIB;
  }
  return `${number.toFixed(2)} GiB`;
}

function countText(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many || one + "s"}`;
}

function timesText(before, after) {
  if (!after) return before ? "nothing stored" : "";
  const times = before / after;
  if (Math.abs(times - 1) < 0.005) return "the same";
  return times >= 1 ? `${times.toFixed(times < 10 ? 2 : 1)}× less` : `${(1 / times).toFixed(2)}× more`;
}

// What stands where there are no values to show.
function nothingText(view) {
  return view.fallback ? "the graph was left alone: plain torch.compile decides what is stored" : "nothing is stored for backward";
}

function typeText(value) {
  return `${value.dtype}[${value.shape.join(", ")}]`;
}

const SIGNS = {
  bits2: "2", bits3: "3", bits4: "4", bits8: "8", lossy: "≈", lossless: "≡", exact: "■", inside: "⊂", boundary: "▲",
  recomputed: "↻", dropped: "–", free: "○", none: "",
};
const HOLLOW = new Set(["recomputed", "dropped", "free", "none"]);

function storageSign(group) {
  const hollow = HOLLOW.has(group) ? " hollow" : "";
  return html("span", { class: `sign${hollow}`, style: `--group: var(--${group})`, "aria-hidden": "true" }, SIGNS[group]);
}

function storageText(group, text) {
  return html("span", { class: "storage" }, storageSign(group), text);
}
