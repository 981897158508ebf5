/** Annotations in the colours of their classes, however many: dots where they are small, outlines of those in view. */
import Layer from "ol/layer/Layer.js";
import Source from "ol/source/Source.js";
import ViewHint from "ol/ViewHint.js";
import { buffer, type Extent } from "ol/extent.js";
import type { FrameState } from "ol/Map.js";
import { Catalogue, HIDDEN, Outlines, type Box } from "./cells.ts";
import type { GeoFeature } from "./drawing/features.ts";
import { Placement } from "./drawing/placement.ts";
import type { Frame } from "./frame.ts";
import { Dots, drawMarked, drawOutlines, type Look, type Placing } from "./outlining.ts";
import type { Transport } from "./transport.ts";
import type { LayerScene, LayerSettings, Rgb } from "./types.ts";

// Shapes whose longer side has fewer screen pixels than this are dots.
const LEAST_PX = 4;
const FEW = 400;
const MOST_MARKERS = 3000;
// Drawn beyond the edge of the view, so that a drag has something to show; in screen pixels.
const MARGIN = 64;
// Slower drawings are moved, not made anew, while the view moves.
const QUICK_MS = 10;
const IN_FLIGHT = 3;
const SHAPES_AT_ONCE = 8192;
const BUDGET = 192 << 20;

/** What is known of the shape under the pointer. */
export interface Hit {
  key: string;
  /** Of an object of a document. */
  id?: string;
  label: number;
  name: string;
  area?: number;
  score?: number;
  title?: string;
}

export class ShapesLayer {
  readonly layer: Layer;
  private readonly source: Source;
  private readonly element = document.createElement("div");
  private readonly pen = makePen(this.element);
  private readonly markPen = makePen(this.element);
  private readonly dots = new Dots();
  private readonly origin: [number, number];
  private readonly unit: [number, number];
  /** Where the objects of a document are, as far as their outlines are known. */
  private readonly places = new Map<string, { cell: number; shape: number; label: number }>();
  /** Objects that something else shows. */
  private readonly hidden = new Set<string>();
  private catalogue: Catalogue | undefined;
  private kept = new Map<number, Outlines>();
  private bytes = 0;
  private readonly asked = new Map<AbortController, number[]>();
  private closed = new AbortController();
  private settings: LayerSettings;
  private look: Look;
  private marked: { cell: number; shape: number } | null = null;
  private drawn: { key: string; state: FrameState; cost: number; at: number } | undefined;
  private changes = 0;
  private fetching = false;
  private outlined = new Set<number>();

  constructor(
    public scene: LayerScene,
    frame: Frame,
    private readonly transport: Transport,
    settings: LayerSettings,
    private readonly fail: (message: string) => void,
    private readonly loaded: () => void = () => undefined,
  ) {
    this.settings = settings;
    this.look = { colors: [], few: false, box: [0, 0, 0, 0] };
    ({ origin: this.origin, unit: this.unit } = new Placement(frame, scene));
    this.element.className = "ol-layer dhv-shapes";
    this.source = new Source({ projection: frame.projection, state: "ready" });
    this.layer = new Layer({ source: this.source, render: (state) => this.render(state) });
    this.apply(settings);
    void this.fetch();
  }

  apply(settings: LayerSettings): void {
    this.settings = settings;
    this.layer.setVisible(settings.visible);
    this.layer.setOpacity(settings.opacity);
    this.look.colors = this.scene.classes.map((one, i) =>
      settings.hidden.includes(i) ? null : (settings.class_colors?.[i] ?? one.color),
    );
    this.redraw();
  }

  /** Show other shapes in place of these, which stay until the new ones are there. */
  renew(scene: LayerScene): void {
    this.scene = scene;
    this.closed.abort();
    // Cells are numbered anew: nothing more is asked for by the old numbers.
    for (const controller of this.asked.keys()) controller.abort();
    this.closed = new AbortController();
    void this.fetch();
  }

  /** The shape at a place of the frame. */
  hit(coordinate: number[], resolution: number): Hit | null {
    const { catalogue } = this;
    if (!catalogue || !this.settings.visible) return null;
    const at: [number, number] = [(coordinate[0]! - this.origin[0]) / this.unit[0], (this.origin[1] - coordinate[1]!) / this.unit[1]];
    const near = (3 * resolution) / Math.max(...this.unit);
    let best: { cell: number; shape: number; area: number } | null = null;
    for (const cell of catalogue.within([at[0] - near, at[1] - near, at[0] + near, at[1] + near])) {
      const outlines = this.outlined.has(cell) ? this.kept.get(cell) : undefined;
      const first = catalogue.firsts[cell]!;
      const reach = catalogue.extents[cell] ? near : 2 * near;
      const shape = outlines?.find(at, reach, (i) => Boolean(this.look.colors[catalogue.labels[first + i]!])) ?? -1;
      if (shape >= 0 && !(best && best.area < outlines!.areas[shape]!)) best = { cell, shape, area: outlines!.areas[shape]! };
    }
    return best && this.tell(best.cell, best.shape);
  }

  /** The shapes in view that are drawn as outlines: how many, the largest of them, and whether others are dots. */
  list(most: number): { hits: Hit[]; count: number; dotted: boolean } {
    const { catalogue, drawn } = this;
    if (!catalogue || !drawn || !this.settings.visible) return { hits: [], count: 0, dotted: false };
    const [left, top, right, bottom] = this.box(drawn.state, 0);
    const found: { cell: number; shape: number; area: number }[] = [];
    for (const cell of this.outlined) {
      const outlines = this.kept.get(cell);
      for (let shape = 0; shape < (outlines?.count ?? 0); shape++) {
        if (!this.look.colors[catalogue.labels[catalogue.firsts[cell]! + shape]!]) continue;
        const [x0, y0, x1, y1] = outlines!.box(shape);
        if (x0 <= right && x1 >= left && y0 <= bottom && y1 >= top) found.push({ cell, shape, area: outlines!.areas[shape]! });
      }
    }
    found.sort((a, b) => b.area - a.area);
    const hits = found.slice(0, most).map(({ cell, shape }) => this.tell(cell, shape));
    return { hits, count: found.length, dotted: catalogue.within([left, top, right, bottom]).some((cell) => !this.outlined.has(cell)) };
  }

  /** An object of a document as it was packed; null where its outline is not known. */
  feature(id: string): GeoFeature | null {
    const place = this.places.get(id);
    const outlines = place && this.kept.get(place.cell);
    if (!outlines) return null;
    const found = this.scene.classes[place.label];
    const classification = found && this.isClass(place.label) ? { name: found.name, color: found.color } : null;
    const name = outlines.titles.get(place.shape);
    const review = outlines.review(place.shape);
    return {
      type: "Feature", id, geometry: outlines.geometry(place.shape),
      properties: { objectType: "annotation", ...(classification && { classification }), ...(name !== undefined && { name }), ...(review && { metadata: { review } }) },
    };
  }

  /** Objects of a document whose outlines are known and whose boxes touch a part of the frame. */
  within(extent: Extent): string[] {
    const { catalogue } = this;
    if (!catalogue || !this.settings.visible) return [];
    const box = this.boxOf(extent);
    return catalogue.within(box).flatMap((cell) => {
      const outlines = this.kept.get(cell);
      return (outlines?.ids ?? []).filter((_, shape) => {
        if (!this.look.colors[catalogue.labels[catalogue.firsts[cell]! + shape]!]) return false;
        const [x0, y0, x1, y1] = outlines!.box(shape);
        return x0 <= box[2] && x1 >= box[0] && y0 <= box[3] && y1 >= box[1];
      });
    });
  }

  /** Whether shapes in a part of the frame have no outlines yet. */
  isDotted(extent: Extent): boolean {
    const cells = this.catalogue?.within(this.boxOf(extent)) ?? [];
    return cells.some((cell) => !this.kept.has(cell));
  }

  /** Leave an object of a document out, or show it again. */
  hide(id: string, hidden: boolean): void {
    if (this.hidden.has(id) === hidden) return;
    if (hidden) this.hidden.add(id);
    else this.hidden.delete(id);
    const place = this.places.get(id);
    if (!place) return;
    if (hidden && this.marked?.cell === place.cell && this.marked.shape === place.shape) this.mark(null);
    this.catalogue?.label(place.cell, place.shape, hidden ? HIDDEN : place.label);
    this.kept.get(place.cell)?.stale();
    this.redraw();
  }

  /** The part of the frame that was drawn last. */
  get seen(): Extent | null {
    return this.drawn?.state.extent ?? null;
  }

  /** Where a shape lies in the frame: left, bottom, right, top. */
  extent({ key }: Hit): Extent | null {
    const [cell, shape] = key.split(":").map(Number) as [number, number];
    const box = this.kept.get(cell)?.box(shape);
    if (!box) return null;
    const x = [box[0], box[2]].map((side) => this.origin[0] + side * this.unit[0]);
    const y = [box[1], box[3]].map((side) => this.origin[1] - side * this.unit[1]);
    return [x[0]!, y[1]!, x[1]!, y[0]!];
  }

  /** The colour of a class as it is drawn. */
  color(label: number): Rgb {
    return this.look.colors[label] ?? this.scene.classes[label]?.color ?? [0, 0, 0];
  }

  /** Draw the shape under the pointer stronger than the others. */
  mark(hit: Hit | null): void {
    const [cell, shape] = hit?.key.split(":").map(Number) ?? [];
    if (this.marked?.cell === cell && this.marked?.shape === shape) return;
    this.marked = cell === undefined || shape === undefined ? null : { cell, shape };
    if (this.drawn) this.drawMark(this.place(this.drawn.state));
  }

  close(): void {
    this.closed.abort();
    for (const controller of this.asked.keys()) controller.abort();
  }

  private tell(cell: number, shape: number): Hit {
    const outlines = this.kept.get(cell)!;
    const label = this.catalogue!.labels[this.catalogue!.firsts[cell]! + shape]!;
    const id = outlines.ids[shape];
    const [area, score, title] = [outlines.areas[shape]!, outlines.scores[shape]!, outlines.titles.get(shape)];
    return {
      key: `${cell}:${shape}`, label, name: this.scene.classes[label]?.name ?? "", ...(id !== undefined && { id }),
      ...(area > 0 && { area }), ...(!Number.isNaN(score) && { score }), ...(title !== undefined && { title }),
    };
  }

  private async fetch(): Promise<void> {
    const { signal } = this.closed;
    this.source.loading = this.fetching = true;
    try {
      const { buffers } = await this.transport.shapes({ layer: this.scene.id, revision: this.scene.revision ?? 0 }, signal);
      this.fetching = false;
      this.catalogue = new Catalogue(buffers[0]!);
      this.kept = new Map();
      this.places.clear();
      this.bytes = 0;
      this.marked = null;
      this.loaded();
    } catch (error) {
      if (!signal.aborted) this.fail(`${this.scene.name}: ${(error as Error).message}`);
    } finally {
      if (!signal.aborted) this.settle();
    }
  }

  private redraw(): void {
    this.changes += 1;
    this.layer.changed();
  }

  /** Whoever waits for the view to be complete waits for the outlines too. */
  private settle(): void {
    this.source.loading = this.fetching || this.asked.size > 0;
    this.redraw();
  }

  private render(state: FrameState): HTMLElement {
    this.element.style.opacity = String(this.settings.opacity);
    const { center, resolution, rotation } = state.viewState;
    const key = [center, resolution, rotation, state.size, state.pixelRatio, this.changes].join();
    if (this.drawn?.key === key) return this.element;
    const moving = state.viewHints[ViewHint.ANIMATING]! > 0 || state.viewHints[ViewHint.INTERACTING]! > 0;
    if (moving && this.drawn && this.drawn.cost > QUICK_MS && performance.now() - this.drawn.at < 5 * this.drawn.cost) {
      this.shift(state);
      return this.element;
    }
    const begin = performance.now();
    this.draw(state);
    const now = performance.now();
    this.drawn = { key, state, cost: now - begin, at: now };
    this.shift(state);
    return this.element;
  }

  private draw(state: FrameState): void {
    const [width, height] = state.size;
    for (const { canvas } of [this.pen, this.markPen]) {
      const size = [(width! + 2 * MARGIN) * state.pixelRatio, (height! + 2 * MARGIN) * state.pixelRatio].map(Math.round);
      if (canvas.width !== size[0]) canvas.width = size[0]!;
      if (canvas.height !== size[1]) canvas.height = size[1]!;
    }
    const { catalogue } = this;
    if (!catalogue) return;
    const placing = this.place(state);
    const box = this.box(state);
    const seen = catalogue.within(box);
    const points = seen.reduce((sum, cell) => sum + (catalogue.extents[cell] ? 0 : catalogue.size(cell)), 0);
    const ready: { outlines: Outlines; labels: ArrayLike<number> }[] = [];
    const sides = new Map<number, number>();
    const missing: number[] = [];
    let count = 0;
    this.outlined = new Set();
    // Dots are seen as such: the fewer there are, the larger.
    const least = (catalogue.count < 2000 ? 5 : catalogue.count < 20_000 ? 3 : 1) * state.pixelRatio;
    for (const cell of seen) {
      const side = catalogue.extents[cell]! * Math.max(...this.unit) * placing.zoom;
      const outlined = side ? side >= LEAST_PX * state.pixelRatio : points <= MOST_MARKERS;
      const outlines = outlined ? this.kept.get(cell) : undefined;
      if (outlines) {
        const first = catalogue.firsts[cell]!;
        ready.push({ outlines, labels: catalogue.labels.subarray(first, first + outlines.count) });
        this.outlined.add(cell);
        count += outlines.count * catalogue.share(cell, box);
        this.kept.delete(cell);
        this.kept.set(cell, outlines);
      } else {
        sides.set(cell, Math.round(Math.min(6 * state.pixelRatio, Math.max(least, 0.8 * side))));
        if (outlined) missing.push(cell);
      }
    }
    this.look.few = count <= FEW;
    this.look.box = box;
    this.dots.paint(this.pen, catalogue, sides, placing, this.look);
    drawOutlines(this.pen, ready, placing, this.look);
    // Canvases draw when they are looked at: look now, so that the time it takes is known.
    this.pen.getImageData(0, 0, 1, 1);
    this.drawMark(placing);
    if (!this.fetching) this.ask(missing, placing);
  }

  private drawMark(placing: Placing): void {
    const { canvas } = this.markPen;
    this.markPen.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.marked) return;
    const { cell, shape } = this.marked;
    const outlines = this.kept.get(cell);
    const color: Rgb | null | undefined = this.look.colors[this.catalogue!.labels[this.catalogue!.firsts[cell]! + shape]!];
    if (outlines && color) drawMarked(this.markPen, outlines, shape, placing, color);
  }

  /** Put the canvas, drawn for one view, where it belongs in another. */
  private shift(state: FrameState): void {
    const drawn = new DOMMatrix(this.drawn!.state.coordinateToPixelTransform);
    const moved = new DOMMatrix(state.coordinateToPixelTransform).multiply(drawn.inverse());
    const ratio = this.drawn!.state.pixelRatio;
    const matrix = moved.translate(-MARGIN, -MARGIN).scale(1 / ratio);
    // The snapshot reads it back.
    for (const { canvas } of [this.pen, this.markPen]) canvas.style.transform = matrix.toString();
  }

  private place(state: FrameState): Placing {
    const { pixelRatio: ratio } = state;
    const matrix = new DOMMatrix([ratio, 0, 0, ratio, MARGIN * ratio, MARGIN * ratio])
      .multiply(new DOMMatrix(state.coordinateToPixelTransform))
      .multiply(new DOMMatrix([this.unit[0], 0, 0, -this.unit[1], ...this.origin]));
    return { matrix, unit: this.unit, zoom: ratio / state.viewState.resolution, ratio };
  }

  /** What is drawn, in level-0 pixels of the layer. */
  private box({ extent, viewState }: FrameState, margin = MARGIN): Box {
    return this.boxOf(buffer(extent!, margin * viewState.resolution));
  }

  /** A part of the frame in level-0 pixels of the layer. */
  private boxOf([left, bottom, right, top]: Extent): Box {
    return [
      (left! - this.origin[0]) / this.unit[0], (this.origin[1] - top!) / this.unit[1],
      (right! - this.origin[0]) / this.unit[0], (this.origin[1] - bottom!) / this.unit[1],
    ];
  }

  /** Ask for outlines, those in the middle first, and withdraw what the view no longer needs. */
  private ask(missing: number[], { matrix }: Placing): void {
    const wanted = new Set(missing);
    for (const [controller, cells] of this.asked) {
      if (!cells.some((cell) => wanted.has(cell))) controller.abort();
      for (const cell of cells) wanted.delete(cell);
    }
    const { boxes } = this.catalogue!;
    const { width, height } = this.pen.canvas;
    const far = (cell: number): number => {
      const [left, top, right, bottom] = boxes.subarray(4 * cell, 4 * cell + 4) as unknown as Box;
      const { x, y } = matrix.transformPoint({ x: (left + right) / 2, y: (top + bottom) / 2 });
      return Math.hypot(x - width / 2, y - height / 2);
    };
    const queue = [...wanted].map((cell): [number, number] => [far(cell), cell]).sort((a, b) => a[0] - b[0]);
    while (queue.length && this.asked.size < IN_FLIGHT) {
      const cells: number[] = [];
      for (let sum = 0; queue.length && sum < SHAPES_AT_ONCE; ) {
        const cell = queue.shift()![1];
        cells.push(cell);
        sum += this.catalogue!.size(cell);
      }
      void this.load(cells);
    }
  }

  private async load(cells: number[]): Promise<void> {
    const controller = new AbortController();
    const { signal } = controller;
    this.asked.set(controller, cells);
    this.source.loading = true;
    try {
      const { buffers } = await this.transport.shapes({ layer: this.scene.id, revision: this.scene.revision ?? 0, cells }, signal);
      signal.throwIfAborted();
      for (const [cell, outlines] of Outlines.read(buffers[0]!)) {
        this.kept.set(cell, outlines);
        this.bytes += outlines.bytes;
        this.register(cell, outlines);
      }
      this.loaded();
      this.forget();
    } catch (error) {
      if (!signal.aborted) this.fail(`${this.scene.name}: ${(error as Error).message}`);
    } finally {
      this.asked.delete(controller);
      if (!this.closed.signal.aborted) this.settle();
    }
  }

  /** Note where the objects of a cell are, and leave those out that something else shows. */
  private register(cell: number, outlines: Outlines): void {
    const { labels, firsts } = this.catalogue!;
    outlines.ids.forEach((id, shape) => {
      const label = this.places.get(id)?.label ?? labels[firsts[cell]! + shape]!;
      this.places.set(id, { cell, shape, label });
      if (this.hidden.has(id)) this.catalogue!.label(cell, shape, HIDDEN);
    });
  }

  /** Shapes without a class form one of their own, which no feature names. */
  private isClass(label: number): boolean {
    const { document, classes } = this.scene;
    return document?.classes.some(({ name }) => name === classes[label]?.name) ?? true;
  }

  /** Drop the outlines that were drawn longest ago, beyond a budget. */
  private forget(): void {
    for (const [cell, outlines] of this.kept) {
      if (this.bytes <= BUDGET) break;
      if (this.outlined.has(cell)) continue;
      this.kept.delete(cell);
      this.bytes -= outlines.bytes;
    }
  }
}

function makePen(element: HTMLElement): CanvasRenderingContext2D {
  const canvas = document.createElement("canvas");
  canvas.style.transformOrigin = "top left";
  canvas.style.position = "absolute";
  element.append(canvas);
  // Drawn by the processor: dots are pixels set one by one, and thousands of small paths are no work for a GPU.
  return canvas.getContext("2d", { willReadFrequently: true })!;
}
