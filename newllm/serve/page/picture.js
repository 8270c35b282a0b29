/** The context vector as a heat map: a band for each layer, channels across, moments downwards. */

const MOMENTS = 48;
const HEIGHT = 240;
const GAP = 4;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Negative, zero, positive: told apart without red and green, and against either background. */
const COLOURS = {
  light: [[180, 83, 9], [245, 243, 238], [15, 118, 110]],
  dark: [[251, 169, 76], [32, 33, 35], [69, 212, 191]],
};

export function mix(from, to, share) {
  return from.map((channel, i) => channel + (to[i] - channel) * share);
}

export class Picture {
  #rows = [];
  #asked = false;
  #last = 0;

  /** canvas: the heat map; strip: the newest moment alone, where there is little room. */
  constructor(canvas, strip) {
    this.canvas = canvas;
    this.strip = strip;
  }

  /** Show these moments; the list is shared with whoever adds to it. Each is [layer][channel]. */
  show(rows) {
    this.#rows = rows;
    this.draw();
  }

  /** Whether only the newest moment is drawn, now and then. */
  get still() {
    return calm.matches;
  }

  /** Draw with the next frame. */
  draw() {
    if (this.#asked) return;
    this.#asked = true;
    const wait = this.still ? Math.max(0, this.#last + 500 - performance.now()) : 0;
    setTimeout(() => requestAnimationFrame(() => {
      this.#asked = false;
      this.#last = performance.now();
      this.#paint();
    }), wait);
  }

  #paint() {
    const rows = this.#rows;
    const newest = rows.at(-1);
    const [layers, width] = newest ? [newest.length, newest[0].length] : [1, 64];
    const room = this.still ? 1 : Math.max(4, Math.floor(MOMENTS / layers));
    const moments = Math.min(room, Math.max(1, rows.length));
    const thick = Math.max(1, Math.round(HEIGHT / (layers * moments)));
    const band = moments * thick;
    const gap = layers > 1 ? GAP : 0;
    const scales = Array.from({ length: layers }, (_, layer) => scaleOf(rows, layer));
    this.canvas.width = this.strip.width = width;
    this.canvas.height = layers * (band + gap) - gap;
    this.strip.height = layers;
    const [image, line] = [this.canvas, this.strip].map((c) => new ImageData(c.width, c.height));
    for (let layer = 0; layer < layers && newest; layer++) {
      for (let y = 0; y < band; y++) {
        const row = rows[rows.length - moments + Math.floor(y / thick)];
        paintRow(image, layer * (band + gap) + y, row[layer], scales[layer]);
      }
      paintRow(line, layer, newest[layer], scales[layer]);
    }
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    this.strip.getContext("2d").putImageData(line, 0, 0);
  }
}

/** Keep the moments that are drawn at most. */
export function remember(rows, row) {
  rows.push(row);
  if (rows.length > MOMENTS) rows.shift();
}

/** What is drawn in full colour: most of the layer's numbers are smaller. */
function scaleOf(rows, layer) {
  const sizes = rows.flatMap((row) => row[layer].map(Math.abs)).sort((a, b) => a - b);
  return sizes[Math.floor(sizes.length * 0.98)] || 1;
}

/** Of negative numbers, of zero, and of positive ones, in the present theme. */
export function colours() {
  return COLOURS[document.documentElement.dataset.theme];
}

function paintRow(image, y, values, scale) {
  const [negative, zero, positive] = colours();
  values.forEach((value, x) => {
    const strength = Math.min(1, Math.abs(value) / scale) ** 0.7;
    const colour = mix(zero, value < 0 ? negative : positive, strength);
    image.data.set([...colour, 255], (y * image.width + x) * 4);
  });
}
