/**
 * A message as blocks: text and code, and within text code, strong words and what recall proposed.
 *
 * Every character of the message stands in exactly one span, the marks of the markdown too (they are
 * only drawn without size), so that what is copied is what was written.
 */

const FENCE = /^ {0,3}```[ \t]*([\w+#.-]*)[ \t]*$/;
/** Where code without fences begins: first lines that no sentence looks like. */
const BEGINS = new RegExp(
  "^(?:" + [
    "(?:async )?def \\w+\\(.*", "class \\w+ ?[(:{].*", "@\\w[\\w.]*(?:\\(.*\\))?", "#include\\b.*",
    "import [\\w.]+(?: as \\w+)?(?:, ?[\\w.]+)*;?", "(?:from|import) .* (?:import|from) .*",
    "(?:public|private|static|export|async|const|let|var|function) .*[({;=,]",
    "for \\w+(?:, ?\\w+)* in .*:", "(?:for|while|if|switch) ?\\(.*[{;)]",
    "(?:if|while|with) .*[()=<>\\[\\]].*:", "(?:try|else):", "(?:print|console\\.log)\\(.*",
    "SELECT .*", "(?:INSERT INTO|UPDATE \\w+ SET|DELETE FROM|CREATE TABLE)\\b.*",
    "<(?:!DOCTYPE|html|div|head|body|table|form|script|style)\\b.*>",
  ].join("|") + ")$",
);
/** A line that belongs to code once it has begun. */
const GOES_ON = new RegExp(
  "^(?:\\s.*|[})\\]].*||#.*|//.*|(?:else|elif|except|finally|return|yield|raise)\\b.*|" +
  "[\\w.\\[\\]'\"]+ ?[-+*/%]?= ?\\S.*|[\\w.]+\\(.*\\);?|<.*>)$",
);
const INLINE = /(`+)(?!`)[^\n]*?[^`\n](?:\1)(?!`)|\*\*(?=\S)[^\n]*?\S\*\*/g;

/** Blocks { kind: "text" or "code", language, start, end, marks: [[start, end], ..] } of a text. */
export function blocksOf(text) {
  const blocks = [];
  const add = (kind, start, end, marks = [], language = "") => {
    if (start < end) blocks.push({ kind, language, start, end, marks });
  };
  let plain = 0;
  let at = 0;
  while (at < text.length) {
    const next = lineEnd(text, at);
    const line = text.slice(at, next).replace(/\n$/, "");
    const fence = line.match(FENCE);
    let end = next;
    if (fence) {
      let close = null;
      while (end < text.length && !close) {
        const stop = lineEnd(text, end);
        if (/^ {0,3}```\s*$/.test(text.slice(end, stop))) close = [end, stop];
        end = stop;
      }
      add("text", plain, at);
      add("code", at, end, close ? [[at, next], close] : [[at, next]], fence[1]);
    } else if (BEGINS.test(line)) {
      end = codeEnd(text, next);
      add("text", plain, at);
      add("code", at, end);
    } else {
      at = next;
      continue;
    }
    plain = at = end;
  }
  add("text", plain, text.length);
  return blocks;
}

function lineEnd(text, at) {
  const end = text.indexOf("\n", at);
  return end < 0 ? text.length : end + 1;
}

/** Where code that has begun without a fence ends: before the first line that is none. */
function codeEnd(text, at) {
  let end = at;
  while (at < text.length) {
    const next = lineEnd(text, at);
    const line = text.slice(at, next).replace(/\n$/, "");
    if (!GOES_ON.test(line) && !BEGINS.test(line)) break;
    at = next;
    if (line.trim()) end = at; // blank lines belong to what is around them
  }
  return end;
}

/** Spans { text, code, strong, mark, recalled } of a block; `runs` are of the whole text. */
export function spansOf(text, block, runs) {
  const edges = new Set([block.start, block.end]);
  const areas = block.marks.map(([start, end]) => ({ start, end, mark: true }));
  if (block.kind === "text") {
    const part = text.slice(block.start, block.end);
    const first = part.match(/^\n+/)?.[0].length; // the blocks themselves stand apart
    const last = part.match(/\n\n+$/)?.[0].length;
    if (block.start > 0 && first) areas.push({ start: block.start, end: block.start + first, mark: true });
    if (block.end < text.length && last) areas.push({ start: block.end - last, end: block.end, mark: true });
    for (const found of part.matchAll(INLINE)) {
      const size = found[1]?.length ?? 2;
      const start = block.start + found.index;
      const end = start + found[0].length;
      areas.push({ start, end, [found[1] ? "code" : "strong"]: true });
      areas.push({ start, end: start + size, mark: true });
      areas.push({ start: end - size, end, mark: true });
    }
  }
  let place = 0;
  for (const run of runs) {
    const end = place + run.text.length;
    if (run.recalled) areas.push({ start: place, end, recalled: true });
    place = end;
  }
  for (const { start, end } of areas) {
    if (start > block.start && start < block.end) edges.add(start);
    if (end > block.start && end < block.end) edges.add(end);
  }
  const places = [...edges].sort((one, other) => one - other);
  return places.slice(1).map((end, i) => {
    const start = places[i];
    const span = { text: text.slice(start, end) };
    for (const area of areas) {
      if (area.start <= start && end <= area.end) Object.assign(span, area, { start, end });
    }
    return span;
  });
}
