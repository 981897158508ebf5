/** How shapes are drawn on a canvas: dots as pixels where they are small, paths of one class at once where not. */
import type { Box, Catalogue, Drawn, Outlines } from "./cells.ts";
import { reviewed } from "./drawing/reviewed.ts";
import type { Rgb } from "./types.ts";

/** From level-0 pixels of a layer to pixels of the canvas, and how large one of its square units is there. */
export interface Placing {
  matrix: DOMMatrix;
  /** Size of a level-0 pixel in square units, along x and y. */
  unit: [number, number];
  /** Canvas pixels per square unit. */
  zoom: number;
  /** Canvas pixels per screen pixel. */
  ratio: number;
}

export interface Look {
  /** Of every class; null for those that are not drawn. */
  colors: (Rgb | null)[];
  /** So few are seen that each may have a pale casing. */
  few: boolean;
  /** What is drawn, in level-0 pixels of the layer. */
  box: Box;
}

const LEAST_STEP = 0.75;
const CASING = "rgba(255,255,255,0.75)";

export class Dots {
  private image: ImageData | undefined;

  /** Paint the shapes of some cells as squares, `sides` canvas pixels wide; everything else is wiped out. */
  paint(pen: CanvasRenderingContext2D, catalogue: Catalogue, sides: Map<number, number>, { matrix }: Placing, { colors }: Look): void {
    const { width, height } = pen.canvas;
    if (!sides.size) {
      pen.clearRect(0, 0, width, height);
      return;
    }
    if (this.image?.width !== width || this.image.height !== height) this.image = new ImageData(width, height);
    const pixels = new Uint32Array(this.image.data.buffer);
    pixels.fill(0);
    const palette = Uint32Array.from(colors, (color) => (color ? (0xff000000 | (color[2] << 16) | (color[1] << 8) | color[0]) >>> 0 : 0));
    const { a, b, c, d, e, f } = matrix;
    const { centers, labels, firsts } = catalogue;
    for (const [cell, side] of sides) {
      const shift = (side - 1) / 2 - 0.5;
      for (let i = firsts[cell]!, last = firsts[cell + 1]!; i < last; i++) {
        const color = palette[labels[i]!]!;
        if (!color) continue;
        const x = centers[2 * i]!;
        const y = centers[2 * i + 1]!;
        const left = Math.round(a * x + c * y + e - shift - 0.5);
        const top = Math.round(b * x + d * y + f - shift - 0.5);
        if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
        for (let row = top * width + left, end = row + side * width; row < end; row += width) {
          for (let at = row; at < row + side; at++) pixels[at] = color;
        }
      }
    }
    pen.putImageData(this.image, 0, 0);
  }
}

/** Draw the outlines of cells, large shapes below small ones. */
export function drawOutlines(
  pen: CanvasRenderingContext2D, cells: { outlines: Outlines; labels: ArrayLike<number> }[], placing: Placing, look: Look,
): void {
  // Up to one pixel of the canvas wide, a line is drawn many times faster.
  const width = look.few ? 2 * placing.ratio : 1;
  // One to two pixels: a vertex nearer than that is not seen, and paths are made anew only when the zoom doubles.
  const step = 2 ** -Math.floor(Math.log2(placing.zoom)) * LEAST_STEP;
  const drawn = cells.map(({ outlines, labels }) => ({
    outlines,
    // Wide lines take long, also those that nobody sees.
    paths: look.few ? outlines.pathsWithin(look.box, labels, placing.unit, step) : outlines.paths(labels, placing.unit, step),
  }));
  const each = (act: (path: Drawn, color: Rgb) => void): void => {
    for (const { outlines, paths } of drawn) {
      settle(pen, outlines, placing);
      for (const path of paths) if (look.colors[path.label]) act(path, look.colors[path.label]!);
    }
  };
  pen.lineJoin = "round";
  if (look.few) {
    pen.strokeStyle = CASING;
    pen.lineWidth = (width + 2 * placing.ratio) / placing.zoom;
    each(({ areas, lines }) => {
      pen.stroke(areas);
      pen.stroke(lines);
    });
  }
  pen.lineWidth = width / placing.zoom;
  each(({ areas, lines, review }, color) => {
    const { fill, line, dash } = reviewed(review);
    pen.fillStyle = `rgba(${color},${fill})`;
    pen.fill(areas);
    pen.strokeStyle = `rgba(${color},${line})`;
    pen.setLineDash(dash.map((length) => (length * placing.ratio) / placing.zoom));
    pen.stroke(areas);
    pen.stroke(lines);
  });
  pen.setLineDash([]);
  pen.resetTransform();
  for (const { outlines, labels } of cells) {
    for (let shape = 0; shape < outlines.count; shape++) {
      const color = look.colors[labels[shape]!];
      if (color) for (const place of outlines.points(shape)) marker(pen, place, placing, color, 5);
    }
  }
}

/** Draw one shape stronger than the others. */
export function drawMarked(pen: CanvasRenderingContext2D, outlines: Outlines, shape: number, placing: Placing, color: Rgb): void {
  const path = { areas: new Path2D(), lines: new Path2D() };
  outlines.trace(shape, placing.unit, path);
  settle(pen, outlines, placing);
  pen.lineJoin = "round";
  pen.fillStyle = `rgba(${color},0.2)`;
  pen.fill(path.areas);
  for (const [stroke, width] of [[CASING, 6], [`rgb(${color})`, 3.5]] as const) {
    pen.strokeStyle = stroke;
    pen.lineWidth = (width * placing.ratio) / placing.zoom;
    pen.stroke(path.areas);
    pen.stroke(path.lines);
  }
  pen.resetTransform();
  for (const place of outlines.points(shape)) marker(pen, place, placing, color, 7);
}

/** Let the pen count square units from the corner of a cell. */
function settle(pen: CanvasRenderingContext2D, { origin }: Outlines, { matrix, unit }: Placing): void {
  const { a, b, c, d } = matrix;
  const { x, y } = matrix.transformPoint({ x: origin[0], y: origin[1] });
  pen.setTransform(a / unit[0], b / unit[0], c / unit[1], d / unit[1], x, y);
}

function marker(pen: CanvasRenderingContext2D, [x, y]: [number, number], { matrix, ratio }: Placing, color: Rgb, radius: number): void {
  const at = matrix.transformPoint({ x, y });
  pen.beginPath();
  pen.arc(at.x, at.y, radius * ratio, 0, 2 * Math.PI);
  pen.fillStyle = `rgb(${color})`;
  pen.fill();
  pen.strokeStyle = "#fff";
  pen.lineWidth = 1.5 * ratio;
  pen.stroke();
}
