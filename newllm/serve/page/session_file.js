/** What a session file holds of the state: enough to draw it. The format: newllm/chat/session_file.py */

const MAGIC = "NEWLLM-SESSION 1\n";
const SIZE_BYTES = 4;
const SHOWN = 64;

/** The moment a file was saved at, as [layer][channel] with at most 64 channels; null if not begun. */
export async function momentIn(blob) {
  const buffer = await blob.arrayBuffer();
  const start = MAGIC.length + SIZE_BYTES;
  const size = new DataView(buffer).getUint32(MAGIC.length, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, start, size)));
  const [, type, [layers, , ...rest]] = header.arrays[0];
  if (header.places.at(-1).tokens_read === 0 || type !== "float32") return null;
  const width = rest.reduce((product, length) => product * length, 1);
  const view = new DataView(buffer, start + size);
  const step = Math.ceil(width / SHOWN);
  return Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: Math.ceil(width / step) }, (_, i) =>
      view.getFloat32(4 * (layer * width + i * step), true)));
}
