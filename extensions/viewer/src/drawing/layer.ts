/** A document's objects: those that were changed, chosen or not yet saved lie over the packed ones. */
import Feature from "ol/Feature.js";
import type Geometry from "ol/geom/Geometry.js";
import LineString from "ol/geom/LineString.js";
import Point from "ol/geom/Point.js";
import LayerGroup from "ol/layer/Group.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorImageLayer from "ol/layer/VectorImage.js";
import VectorSource from "ol/source/Vector.js";
import { buffer, type Extent, getSize } from "ol/extent.js";
import type Polygon from "ol/geom/Polygon.js";
import type { StyleLike } from "ol/style/Style.js";
import type { Frame } from "../frame.ts";
import { type Hit, ShapesLayer } from "../shapes.ts";
import type { Follower, Transport } from "../transport.ts";
import type { DocumentClass, LayerScene, LayerSettings, Rgb } from "../types.ts";
import { type Edit, type Edited, EditQueue } from "./edits.ts";
import { applied, type Change, classOf, type GeoFeature, newId, reviewOf } from "./features.ts";
import { Placement } from "./placement.ts";
import { brushStyle, cutStyle, sketchStyle, styleOf, waitStyle } from "./styles.ts";
import { Unsent } from "./unsent.ts";

const UNCLASSIFIED: Rgb = [117, 117, 117];
// As Python names shapes without a class.
const NO_CLASS = "no class";
// Objects that are asked for in full when they are chosen.
const MOST_FULL = 200;
const TINY_PX = 6;

export interface DocumentEvents {
  /** Objects, classes or the saving have changed. */
  changed(): void;
  told(text: string): void;
}

export class DocumentLayer {
  readonly layer: LayerGroup;
  readonly placement: Placement;
  readonly queue: EditQueue;
  classes: DocumentClass[];
  selection = new Set<string>();
  events: DocumentEvents = { changed: () => undefined, told: () => undefined };
  private readonly packed: ShapesLayer;
  private readonly source = new VectorSource<Feature>();
  private readonly sketches = new VectorSource<Feature>();
  private readonly marks = new VectorSource<Feature>();
  /** What the document said of objects; null of those that are gone. */
  private readonly truth = new Map<string, { feature: GeoFeature | null; revision: number }>();
  /** What edits on their way do to objects. */
  private touched = new Map<string, Change[]>();
  private readonly unsent: Unsent;
  private readonly closed = new AbortController();
  private settings: LayerSettings;
  /** The last state of the document that is known here. */
  revision: number;
  private editing = false;
  /** What was said of objects holds no more once the layer is packed anew. */
  private outdated = false;
  private held = new Set<string>();
  /** Classes that are not drawn. */
  private hidden = new Set<string>();

  constructor(
    public scene: LayerScene, frame: Frame, private readonly transport: Transport, settings: LayerSettings,
    fail: (message: string) => void,
  ) {
    this.settings = settings;
    this.placement = new Placement(frame, scene);
    this.classes = scene.document!.classes;
    this.revision = scene.document!.revision;
    this.unsent = new Unsent(scene.document!.path);
    this.queue = new EditQueue({
      send: (edit) => transport.edit({ ...edit, layer: scene.id }, this.closed.signal) as unknown as Promise<Edited>,
      answered: (_, answer) => this.take(answer),
      changed: () => this.fold(),
    });
    this.packed = new ShapesLayer(scene, frame, transport, settings, fail, () => this.settle());
    // Drawn when one of them changes, not with every move of the pointer.
    const objects = new VectorImageLayer({ source: this.source, style: (one, resolution) => this.style(one as Feature, resolution), imageRatio: 1.3 });
    // These are few: they keep their looks while the view moves.
    const few = [this.sketches, this.marks].map((source) => new VectorLayer({ source, updateWhileAnimating: true, updateWhileInteracting: true }));
    this.layer = new LayerGroup({ layers: [this.packed.layer, objects, ...few] });
    this.apply(settings);
    const follower: Follower = { layer: scene.id, revision: () => this.revision, tell: (news) => this.hear(news) };
    transport.follow(follower, this.closed.signal);
    const left = this.unsent.take();
    if (left.length) this.queue.adopt(left, "the connection was lost before");
  }

  get readOnly(): string | null {
    return this.scene.document!.readOnly;
  }

  get author(): string {
    return this.scene.document!.author;
  }

  /** Names of the classes that shapes may have, by their number here. */
  private get names(): string[] {
    const packed = this.scene.classes.map(({ name }) => name);
    return [...packed, ...this.classes.map(({ name }) => name).filter((name) => !packed.includes(name))];
  }

  apply(settings: LayerSettings): void {
    this.settings = settings;
    this.hidden = new Set([...this.hidden].filter((name) => !this.scene.classes.some((one) => one.name === name)));
    for (const label of settings.hidden) this.hidden.add(this.scene.classes[label]?.name ?? "");
    const colors = this.scene.classes.map(({ name, color }) => this.classes.find((one) => one.name === name)?.color ?? color);
    this.packed.apply({ ...settings, opacity: 1, visible: true, class_colors: colors });
    this.layer.setVisible(settings.visible);
    this.layer.setOpacity(settings.opacity);
    this.source.changed();
  }

  isHidden(name: string): boolean {
    return this.hidden.has(name);
  }

  /** Draw the objects of a class, or do not; returns the numbers of the classes that settings can hold. */
  setHidden(name: string, hidden: boolean): number[] {
    if (hidden) this.hidden.add(name);
    else this.hidden.delete(name);
    this.source.changed();
    return this.scene.classes.flatMap((one, label) => (this.hidden.has(one.name) ? [label] : []));
  }

  /** Take over what Python says of the layer now; `anew` where its counting begins again, too. */
  renew(scene: LayerScene, anew = false): void {
    const renewed = anew || (scene.revision ?? 0) !== (this.scene.revision ?? 0);
    this.scene = scene;
    this.classes = scene.document!.classes;
    if (renewed) {
      if (this.outdated || anew) this.truth.clear();
      this.outdated = false;
      this.packed.renew(scene);
      this.show(this.source.getFeatures().map((one) => one.getId() as string));
    }
    this.apply(this.settings);
    this.events.changed();
  }

  close(): void {
    this.closed.abort();
    this.queue.close();
    this.unsent.close();
    this.packed.close();
  }

  /** An edit that is shown at once and saved as soon as possible. */
  edit(edit: Omit<Edit, "key">): void {
    this.queue.add({ key: newId(), ...edit } as Edit);
  }

  /** Something else of the document: its history, objects in full, objects found. */
  ask<T>(action: string, request: Record<string, unknown>): Promise<T> {
    return this.transport.edit({ layer: this.scene.id, action, ...request }, this.closed.signal) as Promise<T>;
  }

  /** Give up what could not be saved. */
  discard(): void {
    this.queue.discard();
  }

  /** An object as it stands here, edits on their way included. */
  object(id: string): GeoFeature | null {
    let feature = this.truth.has(id) ? this.truth.get(id)!.feature : this.packed.feature(id);
    for (const change of this.touched.get(id) ?? []) feature = applied(feature, change);
    return feature;
  }

  /** Its geometry in the frame. */
  geometry(id: string): Geometry | null {
    const drawn = this.source.getFeatureById(id)?.getGeometry();
    if (drawn) return drawn;
    const feature = this.object(id);
    return feature && this.placement.geometry(feature.geometry);
  }

  /** Objects that are drawn in full and touch a part of the frame. */
  within(extent: Extent): string[] {
    if (!this.settings.visible) return [];
    const over = this.source.getFeaturesInExtent(extent).filter((one) => this.isShown(one) && one.getGeometry()!.intersectsExtent(extent));
    const own = new Set(over.map((one) => one.getId() as string));
    const below = this.packed.within(extent).filter((id) => !own.has(id) && this.geometry(id)?.intersectsExtent(extent));
    return [...own, ...below];
  }

  /** Whether objects in a part of the frame are dots, which have no names here. */
  isDotted(extent: Extent): boolean {
    return this.settings.visible && this.packed.isDotted(extent);
  }

  /** All objects in a box of level-0 pixels, dots too, but for hidden classes. */
  async findWithin(extent: number[]): Promise<string[]> {
    const shown = this.hidden.size ? [...this.classes.map(({ name }) => name), null].filter((name) => !this.hidden.has(name ?? NO_CLASS)) : [];
    const filters = this.hidden.size ? shown.map((name) => ({ extent, class: name })) : [{ extent }];
    const found = await Promise.all(filters.map((filter) => this.ask<{ ids: string[] }>("find", { filter })));
    return found.flatMap(({ ids }) => ids);
  }

  select(ids: Iterable<string>): void {
    const before = this.selection;
    this.selection = new Set(ids);
    this.show(new Set([...before, ...this.selection]));
    this.events.changed();
    const coming = this.queue.pending.map(({ create }) => create);
    const unknown = [...this.selection].filter((id) => !this.truth.has(id) && !this.touched.has(id) && !coming.includes(id));
    if (!unknown.length || unknown.length > MOST_FULL) return;
    this.ask<{ features: GeoFeature[]; revision?: number }>("objects", { ids: unknown }).then(
      ({ features, revision = this.revision }) => {
        for (const feature of features) if (!this.truth.has(feature.id)) this.truth.set(feature.id, { feature, revision });
        this.show(unknown);
        this.events.changed();
      },
      // What was packed is enough to go on with.
      () => undefined,
    );
  }

  /** The features that a vertex editor may change; what is said elsewhere waits until it is done. */
  features(ids: Iterable<string>): Feature[] {
    return [...ids].flatMap((id) => this.source.getFeatureById(id) ?? []);
  }

  /** Objects as features to snap to, whatever shows them. */
  shapes(ids: Iterable<string>): Feature[] {
    return [...ids].flatMap((id) => {
      const geometry = this.geometry(id);
      return geometry ? new Feature(geometry) : [];
    });
  }

  /** Show vertices, or do not. */
  showVertices(shown: boolean): void {
    this.editing = shown;
    this.source.changed();
  }

  hold(ids: Iterable<string>): void {
    this.held = new Set(ids);
  }

  release(): void {
    const { held } = this;
    this.held = new Set();
    this.show(held);
  }

  /** The smallest object at a place of the frame. */
  hit(coordinate: number[], resolution: number): Hit | null {
    if (!this.settings.visible) return null;
    const below = this.packed.hit(coordinate, resolution);
    let best = below && !(below.id !== undefined && this.source.getFeatureById(below.id)) ? below : null;
    const near = buffer([...coordinate, ...coordinate] as Extent, 4 * resolution);
    for (const one of this.source.getFeaturesInExtent(near)) {
      if (!this.isShown(one) || !one.getGeometry()!.intersectsExtent(near)) continue;
      const hit = this.tell(one);
      if (!best || (hit.area ?? 0) <= (best.area ?? 0)) best = hit;
    }
    return best;
  }

  /** The objects in view that are drawn in full, the largest first. */
  list(most: number): { hits: Hit[]; count: number; dotted: boolean } {
    const { hits, count, dotted } = this.packed.list(most);
    const view = this.packed.seen ?? [0, 0, 0, 0];
    const kept = hits.filter(({ id }) => id === undefined || !this.source.getFeatureById(id));
    const over = this.source.getFeaturesInExtent(view).filter((one) => this.isShown(one)).map((one) => this.tell(one));
    const all = [...over, ...kept].sort((a, b) => (b.area ?? 0) - (a.area ?? 0));
    return { hits: all.slice(0, most), count: count - (hits.length - kept.length) + over.length, dotted };
  }

  extent(hit: Hit): Extent | null {
    const drawn = hit.id !== undefined && this.source.getFeatureById(hit.id)?.getGeometry();
    return drawn ? drawn.getExtent() : this.packed.extent(hit);
  }

  color(label: number): Rgb {
    return this.colorOf(this.names[label] ?? null);
  }

  colorOf(name: string | null): Rgb {
    return [...this.classes, ...this.scene.classes].find((one) => one.name === name)?.color ?? UNCLASSIFIED;
  }

  /** Draw the object under the pointer stronger than the others. */
  mark(hit: Hit | null): void {
    const drawn = hit?.id !== undefined ? this.source.getFeatureById(hit.id) : null;
    this.packed.mark(drawn ? null : hit);
    const marked = this.marks.getFeatures()[0];
    if (marked?.getId() === drawn?.getId()) return;
    this.marks.clear(true);
    if (!drawn) {
      this.marks.changed();
      return;
    }
    const mark = new Feature(drawn.getGeometry());
    mark.setId(drawn.getId());
    const feature = drawn.get("object") as GeoFeature;
    mark.setStyle(styleOf({ color: this.colorOf(classOf(feature)), review: reviewOf(feature), selected: true, failed: false, vertices: false, tiny: false }));
    this.marks.addFeature(mark);
  }

  private tell(one: Feature): Hit {
    const feature = one.get("object") as GeoFeature;
    const geometry = one.getGeometry()!;
    const [x, y] = this.placement.unit;
    const area = "getArea" in geometry ? (geometry as Polygon).getArea() / (x * y) : 0;
    const name = classOf(feature);
    const label = name === null ? this.names.length : this.names.indexOf(name);
    const score = (feature.properties.measurements as Record<string, number> | undefined)?.score;
    return {
      key: `id:${feature.id}`, id: feature.id, label, name: name ?? NO_CLASS,
      ...(area > 0 && { area }), ...(score !== undefined && { score }), ...(feature.properties.name && { title: feature.properties.name }),
    };
  }

  private isShown(one: Feature): boolean {
    return !this.hidden.has(classOf(one.get("object") as GeoFeature) ?? NO_CLASS);
  }

  private style(one: Feature, resolution: number): ReturnType<typeof styleOf> | undefined {
    if (!this.isShown(one)) return undefined;
    const [width, height] = getSize(one.getGeometry()!.getExtent());
    const side = Math.max(width!, height!) / resolution;
    const feature = one.get("object") as GeoFeature;
    const selected = this.selection.has(feature.id);
    return styleOf({
      color: this.colorOf(classOf(feature)), review: reviewOf(feature), selected,
      failed: this.queue.saving.state === "unsaved" && this.touched.has(feature.id), vertices: selected && this.editing, tiny: side > 0 && side < TINY_PX,
    });
  }

  /** Show objects as they stand. */
  private show(ids: Iterable<string>): void {
    for (const id of ids) {
      if (this.held.has(id)) continue;
      const own = this.truth.has(id) || this.touched.has(id);
      const feature = own || this.selection.has(id) ? this.object(id) : null;
      const drawn = this.source.getFeatureById(id);
      this.packed.hide(id, own);
      if (!feature) {
        if (drawn) this.source.removeFeature(drawn);
        if (this.marks.getFeatureById(id)) this.marks.clear();
        continue;
      }
      const geometry = this.placement.geometry(feature.geometry);
      if (drawn) {
        drawn.set("object", feature, true);
        drawn.setGeometry(geometry);
        continue;
      }
      const made = new Feature({ geometry, object: feature });
      made.setId(id);
      this.source.addFeature(made);
    }
    this.source.changed();
  }

  /** Show what edits on their way will make, and keep them over a reload. */
  private fold(): void {
    const { pending } = this.queue;
    const before = this.touched;
    this.touched = new Map();
    for (const change of pending.flatMap(({ changes = [] }) => changes)) {
      this.touched.set(change.object, [...(this.touched.get(change.object) ?? []), change]);
    }
    this.unsent.keep(pending);
    this.show(new Set([...before.keys(), ...this.touched.keys()]));
    const wanted = new Set(pending.map(({ key }) => key));
    for (const sketch of this.sketches.getFeatures()) if (!wanted.has(sketch.getId() as string)) this.sketches.removeFeature(sketch);
    for (const edit of pending) if (edit.action === "draw" && !this.sketches.getFeatureById(edit.key)) this.sketch(edit);
    this.events.changed();
  }

  /** What is seen of an edit whose result Python works out. */
  private sketch(edit: Edit): void {
    if (!edit.path?.length) return;
    const places = (this.placement.geometry({ type: "LineString", coordinates: edit.path }) as LineString).getCoordinates();
    const single = places.length < 2;
    const one = new Feature<Geometry>(single && edit.tool === "wand" ? new Point(places[0]!) : new LineString(single ? [places[0]!, places[0]!] : places));
    one.setId(edit.key);
    one.setStyle(this.sketchStyle(edit));
    this.sketches.addFeature(one);
  }

  private sketchStyle({ tool, radius, class: name }: Edit): StyleLike {
    const color = this.colorOf((name as string | undefined) ?? null);
    const wide = ((radius as number | undefined) ?? 0) * this.placement.unit[0];
    if (tool === "brush" || tool === "eraser") return brushStyle(tool === "brush" ? color : null, (resolution) => wide / resolution);
    if (tool === "wand") return waitStyle(color);
    return tool === "split" || tool === "hole" ? cutStyle() : sketchStyle(color);
  }

  /** An answer: what the document holds now. */
  private take(answer: Edited): void {
    this.revision = Math.max(this.revision, answer.revision);
    this.outdated ||= answer.reload === true;
    const fresh = answer.changes.filter(({ object }) => answer.revision >= (this.truth.get(object)?.revision ?? 0));
    for (const { object, feature } of fresh) this.truth.set(object, { feature, revision: answer.revision });
    if (answer.classes) this.takeClasses(answer.classes);
    const gone = fresh.filter(({ object, feature }) => !feature && this.selection.has(object)).map(({ object }) => object);
    if (gone.length) this.selection = new Set([...this.selection].filter((id) => !gone.includes(id)));
    this.show(answer.changes.map(({ object }) => object));
    if (answer.told) this.events.told(answer.told);
    // A kernel tells of its layers by itself.
    if (typeof answer.layer === "object") this.renew({ ...answer.layer, id: this.scene.id, base: this.scene.base });
    this.events.changed();
  }

  /** What others did, or that the server counts anew. */
  private hear(news: Record<string, unknown>): void {
    if (!news.anew) {
      this.take(news as unknown as Edited);
      return;
    }
    const layer = news.layer as LayerScene;
    this.revision = layer.document!.revision;
    this.renew({ ...layer, id: this.scene.id, base: this.scene.base }, true);
  }

  private takeClasses(classes: DocumentClass[]): void {
    this.classes = classes;
    this.apply(this.settings);
  }

  /** Let packed objects show themselves again once they are as new as what lies over them. */
  private settle(): void {
    const packed = this.scene.document!.revision;
    const settled: string[] = [];
    for (const [id, { feature, revision }] of this.truth) {
      if (revision > packed || this.selection.has(id) || this.touched.has(id)) continue;
      if (feature && !this.packed.feature(id)) continue;
      this.truth.delete(id);
      settled.push(id);
    }
    this.show(new Set([...settled, ...this.selection]));
  }
}

