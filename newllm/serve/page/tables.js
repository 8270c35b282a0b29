/** The tables of recall as thin bands, one below the other: how full each part of each is. */

import { colours, mix } from "./picture.js";

const PARTS = 64;
const THICK = 3;
const GAP = 1;

/** Shares of slots with something in them, 0..1, in up to 64 parts of each table. */
export function fullness(slots, tables) {
  const size = slots.length / tables;
  const parts = Math.min(PARTS, size);
  // As numpy splits arrays: the first parts are the larger ones, if any are.
  const edge = (part) => part * Math.floor(size / parts) + Math.min(part, size % parts);
  return Array.from({ length: tables }, (_, table) =>
    Array.from({ length: parts }, (_, part) => {
      const some = slots.subarray(table * size + edge(part), table * size + edge(part + 1));
      return some.reduce((total, slot) => total + (slot > 0), 0) / some.length;
    }));
}

/** Draw them on a canvas: the fuller, the nearer to the context vector's colour of much. */
export function drawTables(canvas, tables) {
  const width = tables[0].length;
  canvas.width = width;
  canvas.height = tables.length * (THICK + GAP) - GAP;
  const image = new ImageData(canvas.width, canvas.height);
  const [, empty, full] = colours();
  tables.forEach((parts, table) => {
    parts.forEach((share, x) => {
      // The first entries are to be seen: the root makes much of little.
      const colour = mix(empty, full, Math.sqrt(share));
      for (let y = 0; y < THICK; y++) {
        image.data.set([...colour, 255], ((table * (THICK + GAP) + y) * width + x) * 4);
      }
    });
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}
