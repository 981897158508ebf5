/** OpenLayers' interactions for one tool at a time: drawing, editing vertices, selecting by a box, snapping. */
import Collection from "ol/Collection.js";
import type Feature from "ol/Feature.js";
import type Map from "ol/Map.js";
import type MapBrowserEvent from "ol/MapBrowserEvent.js";
import type Geometry from "ol/geom/Geometry.js";
import LineString from "ol/geom/LineString.js";
import Point from "ol/geom/Point.js";
import Polygon from "ol/geom/Polygon.js";
import DoubleClickZoom from "ol/interaction/DoubleClickZoom.js";
import DragBox from "ol/interaction/DragBox.js";
import DragPan from "ol/interaction/DragPan.js";
import DragZoom from "ol/interaction/DragZoom.js";
import Draw from "ol/interaction/Draw.js";
import type Interaction from "ol/interaction/Interaction.js";
import Modify from "ol/interaction/Modify.js";
import Snap from "ol/interaction/Snap.js";
import { buffer, createEmpty, extend, type Extent } from "ol/extent.js";
import { unByKey } from "ol/Observable.js";
import VectorSource from "ol/source/Vector.js";
import type { EventsKey } from "ol/events.js";
import type { StyleLike } from "ol/style/Style.js";
import { makeDraw, type Tool } from "./tools.ts";

const MOST_SNAPPED = 1500;
const SNAP_PX = 9;

export interface Pointer {
  alt: boolean;
  shift: boolean;
}

export interface SketchEvents {
  style(tool: Tool): StyleLike;
  /** Something is drawn, or being drawn; null when nothing is any more. */
  drawing(geometry: Geometry | null): void;
  drawn(tool: Tool, geometry: Geometry, pointer: Pointer): void;
  modifying(features: Feature[]): void;
  modified(features: Feature[]): void;
  boxed(extent: Extent, pointer: Pointer): void;
  clicked(event: MapBrowserEvent): void;
  /** Geometries to snap to in a part of the frame. */
  neighbours(extent: Extent): Feature[];
}

export class Sketching {
  /** The pointer moves the view whatever the tool: the space bar is down. */
  held = false;
  private readonly own: Interaction[] = [];
  private readonly snapped = new VectorSource<Feature>();
  private readonly hand: DragPan;
  private pointer: Pointer = { alt: false, shift: false };
  private draw: Draw | undefined;
  private modify: Modify | undefined;
  /** Corners that were set by the keyboard. */
  private corners: number[][] = [];
  private readonly stop = new AbortController();
  private readonly keys: EventsKey[];

  constructor(private readonly map: Map, stage: HTMLElement, private tool: Tool, private readonly events: SketchEvents) {
    this.hand = new DragPan({
      condition: (event) => this.held || (event.originalEvent as PointerEvent).button === 1,
    });
    const { signal } = this.stop;
    stage.addEventListener(
      "pointerdown", ({ altKey, shiftKey }) => (this.pointer = { alt: altKey, shift: shiftKey }), { capture: true, signal },
    );
    // The browser would scroll by itself.
    stage.addEventListener("mousedown", (event) => { if (event.button === 1) event.preventDefault(); }, { signal });
    this.keys = [
      map.on("click", (event) => this.click(event)),
      map.on("moveend", () => this.refresh()),
    ];
  }

  close(): void {
    this.stop.abort();
    for (const key of this.keys) unByKey(key);
    this.use(this.tool, { active: false, snap: false });
  }

  /** Whether a shape is begun. */
  get busy(): boolean {
    return this.corners.length > 0 || this.started;
  }
  private started = false;

  /** Take up a tool. */
  use(tool: Tool, { active = true, snap, features = [] }: { active?: boolean; snap: boolean; features?: Feature[] }): void {
    for (const one of this.own.splice(0)) this.map.removeInteraction(one);
    this.draw = this.modify = undefined;
    this.corners = [];
    this.finish();
    this.tool = tool;
    const moves = tool.name === "pan" || !active;
    for (const one of this.map.getInteractions().getArray()) {
      if (one instanceof DragPan || one instanceof DragZoom || one instanceof DoubleClickZoom) one.setActive(moves);
    }
    if (moves) return;
    if (tool.draw) this.own.push((this.draw = this.makeDraw(tool)));
    if (tool.name === "edit" && features.length) this.own.push((this.modify = this.makeModify(features)));
    if (tool.name === "select" || tool.name === "edit") this.own.unshift(this.makeBox());
    // The one added last hears of the pointer first.
    if (snap && (tool.snaps || tool.name === "edit")) this.own.push(new Snap({ source: this.snapped, pixelTolerance: SNAP_PX }));
    this.own.push(this.hand);
    for (const one of this.own) this.map.addInteraction(one);
    this.hand.setActive(true);
    this.refresh();
  }

  /** Look anew for what can be snapped to. */
  refresh(): void {
    const snaps = this.own.some((one) => one instanceof Snap);
    const size = this.map.getSize();
    if (!snaps || !size) return;
    const near = this.events.neighbours(this.map.getView().calculateExtent(size)).slice(0, MOST_SNAPPED);
    this.snapped.clear(true);
    this.snapped.addFeatures(near);
  }

  /** Stop drawing; returns whether there was something to stop. */
  abort(): boolean {
    const was = this.busy;
    this.corners = [];
    this.draw?.abortDrawing();
    this.finish();
    return was;
  }

  /** Remove the vertex under the pointer. */
  removeVertex(): boolean {
    return this.modify?.canRemovePoint() === true && this.modify.removePoint();
  }

  /** What Enter does: end what the mouse draws, or set a corner in the middle of the view. */
  enter(end: boolean): boolean {
    const center = this.map.getView().getCenter();
    if (!this.draw || !center) return false;
    const type = this.tool.draw!.type;
    if (this.started && !this.corners.length) {
      this.draw.finishDrawing();
      return true;
    }
    const still = this.corners.at(-1)?.join() === center.join();
    if (type === "Point" || this.tool.name === "brush" || this.tool.name === "eraser") {
      this.done(type === "Point" ? new Point(center) : new LineString([center, center]));
    } else if (type === "Circle") {
      this.corners.push(center);
      if (this.corners.length > 1) {
        const corners = this.corners.splice(0);
        if (!still) this.done(this.tool.draw!.geometryFunction!(corners, undefined as never, this.map.getView().getProjection()) as Geometry);
        this.finish();
      }
    } else if (end || still) {
      this.corners = [];
      this.draw.finishDrawing();
    } else {
      this.corners.push(center);
      this.draw.appendCoordinates([center]);
    }
    return true;
  }

  private makeDraw(tool: Tool): Draw {
    const draw = makeDraw(tool, { style: this.events.style(tool), condition: ({ originalEvent }) => !this.held && (originalEvent as PointerEvent).button === 0 });
    draw.on("drawstart", ({ feature }) => {
      this.started = true;
      const geometry = feature.getGeometry()!;
      this.events.drawing(geometry);
      geometry.on("change", () => this.events.drawing(geometry));
    });
    draw.on("drawend", ({ feature }) => {
      this.finish();
      this.done(feature.getGeometry()!);
    });
    draw.on("drawabort", () => this.finish());
    return draw;
  }

  private makeModify(features: Feature[]): Modify {
    const modify = new Modify({
      features: new Collection(features), pixelTolerance: SNAP_PX,
      condition: ({ originalEvent }) => !this.held && (originalEvent as PointerEvent).button === 0,
    });
    modify.on("modifystart", ({ features: changed }) => {
      this.started = true;
      this.events.modifying(changed.getArray());
      const geometry = changed.item(0).getGeometry()!;
      this.events.drawing(geometry);
      geometry.on("change", () => { if (this.started) this.events.drawing(geometry); });
    });
    modify.on("modifyend", ({ features: changed }) => {
      this.finish();
      this.events.modified(changed.getArray());
    });
    return modify;
  }

  private makeBox(): DragBox {
    const box = new DragBox({
      className: "dhv-box", minArea: 36, condition: ({ originalEvent }) => !this.held && (originalEvent as PointerEvent).button === 0,
    });
    box.on("boxend", () => this.events.boxed(box.getGeometry().getExtent(), this.pointer));
    return box;
  }

  private click(event: MapBrowserEvent): void {
    if (this.held) return;
    const { name } = this.tool;
    if (name === "brush" || name === "eraser") this.done(new LineString([event.coordinate, event.coordinate]));
    else if (name === "select" || name === "edit") this.events.clicked(event);
  }

  private finish(): void {
    this.started = false;
    this.events.drawing(null);
  }

  private done(geometry: Geometry): void {
    this.events.drawn(this.tool, geometry, this.pointer);
  }
}

/** Leave out what a freely drawn line has more than the screen can show. */
export function thinned(geometry: Geometry, tolerance: number): Geometry {
  if (geometry instanceof LineString) return geometry.simplify(tolerance);
  if (!(geometry instanceof Polygon)) return geometry;
  const rings = geometry.getCoordinates().map((ring) => (new LineString(ring).simplify(tolerance) as LineString).getCoordinates());
  return rings.every((ring) => ring.length > 3) ? new Polygon(rings) : geometry;
}

/** Whether a path, as wide as a brush, touches a geometry; sure where its steps are small. */
export function touches(path: number[][], geometry: Geometry, radius: number): boolean {
  const whole = path.reduce((extent, place) => extend(extent, [...place, ...place]), createEmpty());
  if (!geometry.intersectsExtent(buffer(whole, radius))) return false;
  return path.some((place, i) => {
    const before = path[Math.max(0, i - 1)]!;
    return geometry.intersectsExtent(buffer(extend([...place, ...place], [...before, ...before]), radius));
  });
}
