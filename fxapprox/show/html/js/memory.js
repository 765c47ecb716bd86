// What is alive at each moment of a training step, from the lives of all pieces of memory.

const STACK = ["saved", "kept", "temporary"]; // from the bottom
const STACK_NAMES = { saved: "saved for backward", kept: "outputs and gradients", temporary: "temporaries" };
const STACK_OF = {
  saved: "saved", output: "kept", gradient: "kept", tangent: "kept", temporary: "temporary", scratch: "temporary",
};
const KIND_NAMES = {
  saved: "saved", output: "output", gradient: "gradient", tangent: "incoming gradient", temporary: "temporary",
  scratch: "workspace",
};

// {saved: [bytes at each moment], kept: [...], temporary: [...], total: [...]}
function levelsOf(timeline) {
  const count = timeline.moments.length;
  const changes = Object.fromEntries(STACK.map((name) => [name, new Float64Array(count + 1)]));
  for (const [, kind, bytes, start, until] of timeline.lives) {
    changes[STACK_OF[kind]][start] += bytes;
    changes[STACK_OF[kind]][until] -= bytes;
  }
  const levels = Object.fromEntries(STACK.map((name) => [name, sums(changes[name]).subarray(0, count)]));
  levels.total = Float64Array.from({ length: count }, (_, at) => STACK.reduce((sum, name) => sum + levels[name][at], 0));
  return levels;
}

function sums(changes) {
  let level = 0;
  return changes.map((change) => (level += change));
}

function highest(levels) {
  return levels.total.reduce((best, level, at) => (level > levels.total[best] ? at : best), 0);
}

// [name, kind, bytes, module that makes it] of the largest pieces of memory at a moment
function largestAt(timeline, at, count) {
  const alive = timeline.lives.filter(([, , , start, until]) => start <= at && at < until);
  const largest = alive.sort((a, b) => b[2] - a[2]).slice(0, count);
  return largest.map(([name, kind, bytes, start]) => [name, kind, bytes, timeline.moments[start][2]]);
}

// At most so many columns, each of which shows the highest of its moments.
function columnsOf(levels, most) {
  const count = levels.total.length;
  const columns = Math.min(count, Math.max(1, Math.floor(most)));
  return Array.from({ length: columns }, (_, column) => {
    const from = Math.floor((column * count) / columns), to = Math.floor(((column + 1) * count) / columns);
    let best = from;
    for (let at = from; at < to; at++) if (levels.total[at] > levels.total[best]) best = at;
    return { from, to, at: best };
  });
}
