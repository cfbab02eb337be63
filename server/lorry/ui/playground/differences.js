// Where a text differs from another, word by word (Myers, "An O(ND) Difference Algorithm", 1986).

const MOST_EDITS = 400; // Beyond it, all between the common beginning and end counts as different.

/** Returns the ranges `[start, end]` of `text` whose words are not in `base` at that place. */
export function differences(base, text) {
  const [before, after] = [words(base), words(text)];
  let start = 0;
  while (start < before.length && start < after.length && same(before, start, after, start)) start += 1;
  let tail = 0;
  const most = Math.min(before.length, after.length) - start;
  while (tail < most && same(before, before.length - 1 - tail, after, after.length - 1 - tail)) tail += 1;
  const a = before.slice(start, before.length - tail);
  const b = after.slice(start, after.length - tail);
  return merged(added(a, b).map((at) => b[at]));
}

function words(text) {
  return Array.from(text.matchAll(/\S+/g), ({ 0: word, index }) => ({ word, start: index, end: index + word.length }));
}

function same(a, i, b, j) {
  return a[i].word === b[j].word;
}

/** Returns the indices of the words of `b` that a shortest script of edits from `a` adds. */
function added(a, b) {
  const all = () => b.map((_, at) => at);
  if (!a.length || !b.length) return all();
  const furthest = [];
  let front = new Map([[1, 0]]);
  for (let edits = 0; edits <= Math.min(a.length + b.length, MOST_EDITS); edits += 1) {
    furthest.push(front);
    front = new Map(front);
    for (let k = -edits; k <= edits; k += 2) {
      let x = down(front, k, edits) ? front.get(k + 1) : front.get(k - 1) + 1;
      let y = x - k;
      while (x < a.length && y < b.length && same(a, x, b, y)) {
        x += 1;
        y += 1;
      }
      front.set(k, x);
      if (x >= a.length && y >= b.length) return traced(furthest, a.length, b.length);
    }
  }
  return all();
}

function down(front, k, edits) {
  return k === -edits || (k !== edits && front.get(k - 1) < front.get(k + 1));
}

/** Returns the words that were added on the way, found from its end. */
function traced(furthest, x, y) {
  const found = [];
  for (let edits = furthest.length - 1; edits > 0; edits -= 1) {
    const front = furthest[edits];
    const k = x - y;
    const insert = down(front, k, edits);
    const before = insert ? k + 1 : k - 1;
    x = front.get(before);
    y = x - before;
    if (insert) found.push(y);
  }
  return found.reverse();
}

function merged(found) {
  const ranges = [];
  let last = null;
  for (const { start, end } of found) {
    if (last && start - last[1] <= 1) last[1] = end;
    else ranges.push((last = [start, end]));
  }
  return ranges;
}
