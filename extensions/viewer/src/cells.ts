/** The shapes of a layer by cells: where all of them are, and the outlines of those cells that were asked for. */
import { type GeoGeometry, type Review, REVIEWS } from "./drawing/features.ts";
import { Packed } from "./packed.ts";

export const POINT = 0;
export const LINE = 1;
export const SHELL = 2;

/** A class that no shape of annotations has. */
export const HIDDEN = 0xffff;

/** Left, top, right, bottom in level-0 pixels of the layer. */
export type Box = [number, number, number, number];

export class Catalogue {
  /** Left, top, right, bottom of every cell. */
  readonly boxes: Float32Array;
  /** Usual longer side of the shapes of every cell; 0 for points. */
  readonly extents: Float32Array;
  /** Where the shapes of every cell begin. */
  readonly firsts: Uint32Array;
  readonly centers: Float32Array;
  labels: Uint8Array | Uint16Array;

  constructor(view: DataView<ArrayBuffer>) {
    const packed = new Packed(view);
    this.boxes = packed.get("boxes");
    this.extents = packed.get("extents");
    this.firsts = packed.get("firsts");
    this.centers = packed.get("centers");
    this.labels = packed.get("labels");
  }

  get count(): number {
    return this.labels.length;
  }

  /** Let a shape be of another class; one that no class has is not drawn. */
  label(cell: number, shape: number, label: number): void {
    if (this.labels instanceof Uint8Array) this.labels = Uint16Array.from(this.labels);
    this.labels[this.firsts[cell]! + shape] = label;
  }

  size(cell: number): number {
    return this.firsts[cell + 1]! - this.firsts[cell]!;
  }

  /** How much of a cell lies in a box, from 0 to 1. */
  share(cell: number, [left, top, right, bottom]: Box): number {
    const [x0, y0, x1, y1] = this.boxes.subarray(4 * cell, 4 * cell + 4) as unknown as Box;
    const along = (low: number, high: number, from: number, to: number): number =>
      high > low ? Math.max(0, Math.min(high, to) - Math.max(low, from)) / (high - low) : 1;
    return along(x0, x1, left, right) * along(y0, y1, top, bottom);
  }

  /** Cells that touch a box, those with the largest shapes first. */
  within([left, top, right, bottom]: Box): number[] {
    const found: number[] = [];
    const { boxes } = this;
    for (let cell = 0, i = 0; cell < this.extents.length; cell++, i += 4) {
      if (boxes[i]! <= right && boxes[i + 2]! >= left && boxes[i + 1]! <= bottom && boxes[i + 3]! >= top) found.push(cell);
    }
    return found;
  }
}

/** Lines and areas of one class and state of review, in pixels from the corner of their cell. */
export interface Drawn {
  label: number;
  review: Review | null;
  areas: Path2D;
  lines: Path2D;
}

/** The outlines of one cell. */
export class Outlines {
  private boxes: Float32Array | undefined;
  private drawn: { step: number; paths: Drawn[] } | undefined;

  private constructor(
    readonly count: number,
    readonly origin: [number, number],
    private readonly shapes: Uint32Array,
    private readonly rings: Uint32Array,
    private readonly kinds: Uint8Array,
    private readonly vertices: Float32Array,
    readonly areas: Float32Array,
    readonly scores: Float32Array,
    readonly titles: Map<number, string>,
    /** Of objects of a document. */
    readonly ids: string[],
    /** Places in `REVIEWS`, by shape. */
    private readonly reviews: Map<number, number>,
  ) {}

  /** Read the cells of one answer. */
  static *read(view: DataView<ArrayBuffer>): Generator<[number, Outlines]> {
    const packed = new Packed(view);
    const [cells, counts, shapes] = ["cells", "counts", "shapes"].map((n) => packed.get<Uint32Array>(n)) as [Uint32Array, Uint32Array, Uint32Array];
    const origins = packed.get<Float64Array>("origins");
    const titles = Object.entries(packed.head.titles as Record<string, string>);
    const ids = (packed.head.ids ?? []) as string[];
    const reviews = Object.entries((packed.head.reviews ?? {}) as Record<string, string>);
    let first = 0;
    for (const [i, cell] of cells.entries()) {
      const count = counts[i]!;
      yield [cell, new Outlines(
        count, [origins[2 * i]!, origins[2 * i + 1]!], shapes.subarray(first, first + count + 1), packed.get("rings"), packed.get("kinds"),
        packed.get("vertices"), packed.get<Float32Array>("areas").subarray(first, first + count),
        packed.get<Float32Array>("scores").subarray(first, first + count),
        new Map(titles.map(([at, title]): [number, string] => [Number(at) - first, title]).filter(([at]) => at >= 0 && at < count)),
        ids.slice(first, first + count),
        new Map(reviews.map(([at, state]): [number, number] => [Number(at) - first, REVIEWS.indexOf(state as Review)])
          .filter(([at, state]) => at >= 0 && at < count && state >= 0)),
      )];
      first += count;
    }
  }

  /** About how much memory the outlines take. */
  get bytes(): number {
    const [first, last] = [this.shapes[0]!, this.shapes[this.count]!];
    return 16 * (this.rings[last]! - this.rings[first]!) + 40 * this.count;
  }

  review(shape: number): Review | null {
    return REVIEWS[this.reviews.get(shape) ?? -1] ?? null;
  }

  /** Paths of each class, scaled to square units, without vertices nearer to the last one than a step. */
  paths(labels: ArrayLike<number>, unit: [number, number], step: number): Drawn[] {
    if (this.drawn?.step !== step) this.drawn = { step, paths: this.traceAll(labels, unit, step, () => true) };
    return this.drawn.paths;
  }

  /** The same of those shapes alone that touch a box. */
  pathsWithin(box: Box, labels: ArrayLike<number>, unit: [number, number], step: number): Drawn[] {
    const boxes = (this.boxes ??= this.measure());
    const [left, top, right, bottom] = box.map((side, i) => side - this.origin[i % 2]!) as Box;
    return this.traceAll(labels, unit, step, (shape) => {
      const i = 4 * shape;
      return boxes[i]! <= right && boxes[i + 2]! >= left && boxes[i + 1]! <= bottom && boxes[i + 3]! >= top;
    });
  }

  private traceAll(
    labels: ArrayLike<number>, unit: [number, number], step: number, shown: (shape: number) => boolean,
  ): Drawn[] {
    const paths = new Map<number, Drawn>();
    for (let shape = 0; shape < this.count; shape++) {
      if (!shown(shape)) continue;
      const label = labels[shape]!;
      const key = label * (REVIEWS.length + 1) + (this.reviews.get(shape) ?? REVIEWS.length);
      let drawn = paths.get(key);
      if (!drawn) paths.set(key, (drawn = { label, review: this.review(shape), areas: new Path2D(), lines: new Path2D() }));
      this.trace(shape, unit, drawn, step);
    }
    return [...paths.values()];
  }

  /** Add one shape to paths. */
  trace(shape: number, [width, height]: [number, number], { areas, lines }: Pick<Drawn, "areas" | "lines">, step = 0): void {
    const { vertices, rings } = this;
    for (let ring = this.shapes[shape]!; ring < this.shapes[shape + 1]!; ring++) {
      const kind = this.kinds[ring]!;
      if (kind === POINT) continue;
      const path = kind === LINE ? lines : areas;
      const last = rings[ring + 1]! - (kind === LINE ? 0 : 1);
      const first = rings[ring]!;
      let x = vertices[2 * first]! * width;
      let y = vertices[2 * first + 1]! * height;
      path.moveTo(x, y);
      for (let i = first + 1; i < last; i++) {
        const u = vertices[2 * i]! * width;
        const v = vertices[2 * i + 1]! * height;
        if (Math.abs(u - x) < step && Math.abs(v - y) < step) continue;
        path.lineTo((x = u), (y = v));
      }
      if (kind !== LINE) path.closePath();
    }
  }

  /** A shape as GeoJSON, in level-0 pixels. */
  geometry(shape: number): GeoGeometry {
    const parts: Record<"Point" | "LineString" | "Polygon", unknown[]> = { Point: [], LineString: [], Polygon: [] };
    for (let ring = this.shapes[shape]!; ring < this.shapes[shape + 1]!; ring++) {
      const places: [number, number][] = [];
      for (let i = this.rings[ring]!; i < this.rings[ring + 1]!; i++) {
        places.push([this.vertices[2 * i]! + this.origin[0], this.vertices[2 * i + 1]! + this.origin[1]]);
      }
      const kind = this.kinds[ring]!;
      if (kind === POINT) parts.Point.push(places[0]);
      else if (kind === LINE) parts.LineString.push(places);
      else if (kind === SHELL) parts.Polygon.push([places]);
      else (parts.Polygon.at(-1) as unknown[]).push(places);
    }
    const geometries = Object.entries(parts).filter(([, found]) => found.length).map(([type, found]) =>
      found.length > 1 ? { type: `Multi${type}`, coordinates: found } : { type, coordinates: found[0] },
    );
    return geometries.length === 1 ? geometries[0]! : { type: "GeometryCollection", geometries };
  }

  /** Trace the shapes anew when they are drawn next, because the class of one has changed. */
  stale(): void {
    this.drawn = undefined;
  }

  /** Places of the points of a shape. */
  *points(shape: number): Generator<[number, number]> {
    for (let ring = this.shapes[shape]!; ring < this.shapes[shape + 1]!; ring++) {
      if (this.kinds[ring] !== POINT) continue;
      const i = 2 * this.rings[ring]!;
      yield [this.vertices[i]! + this.origin[0], this.vertices[i + 1]! + this.origin[1]];
    }
  }

  /** The smallest shape at a place, or within a distance of it; -1 if there is none. */
  find([x, y]: [number, number], distance: number, shown: (shape: number) => boolean): number {
    const boxes = (this.boxes ??= this.measure());
    const [u, v] = [x - this.origin[0], y - this.origin[1]];
    let best = -1;
    for (let shape = 0, i = 0; shape < this.count; shape++, i += 4) {
      if (boxes[i]! - distance > u || boxes[i + 2]! + distance < u || boxes[i + 1]! - distance > v || boxes[i + 3]! + distance < v) continue;
      if (best >= 0 && this.areas[best]! <= this.areas[shape]!) continue;
      if (shown(shape) && this.touches(shape, [u, v], distance)) best = shape;
    }
    return best;
  }

  /** Left, top, right, bottom of a shape. */
  box(shape: number): Box {
    const box = (this.boxes ??= this.measure()).subarray(4 * shape, 4 * shape + 4);
    return [...box].map((side, i) => side + this.origin[i % 2]!) as Box;
  }

  private measure(): Float32Array {
    const boxes = new Float32Array(4 * this.count);
    for (let shape = 0; shape < this.count; shape++) {
      const box = [Infinity, Infinity, -Infinity, -Infinity];
      for (let i = this.rings[this.shapes[shape]!]!; i < this.rings[this.shapes[shape + 1]!]!; i++) {
        const [x, y] = [this.vertices[2 * i]!, this.vertices[2 * i + 1]!];
        box[0] = Math.min(box[0]!, x);
        box[1] = Math.min(box[1]!, y);
        box[2] = Math.max(box[2]!, x);
        box[3] = Math.max(box[3]!, y);
      }
      boxes.set(box, 4 * shape);
    }
    return boxes;
  }

  private touches(shape: number, [x, y]: [number, number], distance: number): boolean {
    let inside = false;
    for (let ring = this.shapes[shape]!; ring < this.shapes[shape + 1]!; ring++) {
      const areal = this.kinds[ring]! >= SHELL;
      const first = this.rings[ring]!;
      for (let i = first, last = this.rings[ring + 1]!; i < last; i++) {
        const j = Math.max(first, i - 1);
        const [x0, y0, x1, y1] = [this.vertices[2 * j]!, this.vertices[2 * j + 1]!, this.vertices[2 * i]!, this.vertices[2 * i + 1]!];
        if (areal && y0 > y !== y1 > y && x < ((x1 - x0) * (y - y0)) / (y1 - y0) + x0) inside = !inside;
        if (distanceTo([x, y], [x0, y0], [x1, y1]) <= distance) return true;
      }
    }
    return inside;
  }
}

function distanceTo(at: [number, number], from: [number, number], to: [number, number]): number {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const along = ((at[0] - from[0]) * dx + (at[1] - from[1]) * dy) / (dx * dx + dy * dy || 1);
  const share = Math.min(1, Math.max(0, along));
  return Math.hypot(at[0] - from[0] - share * dx, at[1] - from[1] - share * dy);
}
