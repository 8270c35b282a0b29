/**
 * A message's text as runs that follow one another: what came out of recall, and what did not.
 *
 * A run is { text, recalled }. Only the last one grows, so that what is drawn is only added to:
 * whoever has selected some of it keeps the selection, and no text is drawn twice.
 */

/** Add a piece of text. White space before recalled words is not among them. */
export function addPiece(runs, text, recalled) {
  const words = recalled && !runs.at(-1)?.recalled ? text.trimStart() : text;
  add(runs, text.slice(0, text.length - words.length), false);
  add(runs, words, recalled);
}

function add(runs, text, recalled) {
  if (text === "") return;
  const last = runs.at(-1);
  if (last?.recalled === recalled) last.text += text;
  else runs.push({ text, recalled });
}

/** The runs of a message as it was kept: of what was not streamed nothing is known. */
export function settledRuns(message, content) {
  const { runs, content: seen } = message ?? {};
  if (!runs || !content.startsWith(seen)) return undefined;
  const settled = runs.map((run) => ({ ...run }));
  add(settled, content.slice(seen.length), false);
  return settled;
}
