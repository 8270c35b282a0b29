/** What a session file holds of the state: enough to draw it. The format: newllm/chat/session_file.py */

import { fullness } from "./tables.js";

const MAGIC = "NEWLLM-SESSION 1\n";
const SIZE_BYTES = 4;
const SHOWN = 64;
const BYTES = { float32: 4, int32: 4, int64: 8 };

/**
 * The moment a file was saved at, null if not begun: the context as [layer][channel] with at most
 * 64 channels, and recall as [table][part], without tables if the model has none.
 */
export async function momentIn(blob) {
  const buffer = await blob.arrayBuffer();
  const start = MAGIC.length + SIZE_BYTES;
  const size = new DataView(buffer).getUint32(MAGIC.length, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, start, size)));
  const [, type, [layers, , ...rest]] = header.arrays[0];
  if (header.places.at(-1).tokens_read === 0 || type !== "float32") return null;
  const width = product(rest);
  const view = new DataView(buffer, start + size);
  const step = Math.ceil(width / SHOWN);
  const context = Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: Math.ceil(width / step) }, (_, i) =>
      view.getFloat32(4 * (layer * width + i * step), true)));
  return { context, recall: recallIn(header.arrays, view) };
}

function recallIn(arrays, view) {
  let place = 0;
  for (const [name, type, shape] of arrays) {
    const count = product(shape);
    if (name === "recall") {
      const slots = Int32Array.from({ length: count }, (_, i) => view.getInt32(place + 4 * i, true));
      return fullness(slots, shape[0]);
    }
    place += count * BYTES[type];
  }
  return [];
}

function product(shape) {
  return shape.reduce((total, length) => total * length, 1);
}
