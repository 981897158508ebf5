/** Drawing on a document: joins the tools, the selection, the cards beside the picture and the document itself. */
import type Feature from "ol/Feature.js";
import type Map from "ol/Map.js";
import type Geometry from "ol/geom/Geometry.js";
import LineString from "ol/geom/LineString.js";
import Point from "ol/geom/Point.js";
import Polygon from "ol/geom/Polygon.js";
import { createEmpty, extend, isEmpty, type Extent } from "ol/extent.js";
import { make } from "../dom.ts";
import type { Frame } from "../frame.ts";
import type { Key } from "../keys.ts";
import type { Measures } from "../measures.ts";
import type { DocumentClass, Model } from "../types.ts";
import { ClassList } from "./classes.ts";
import { moved, read, write } from "./clipboard.ts";
import { type Change, CLASS, changeOf, classOf, commentField, commentsOf, creation, type Fields, type GeoFeature, NAME, newId, REVIEW, reviewOf } from "./features.ts";
import { FindCard } from "./find.ts";
import { HistoryCard, type HistoryEntry } from "./history.ts";
import type { DocumentLayer } from "./layer.ts";
import { type Learned, LearningCard } from "./learning.ts";
import { SelectedCard } from "./selected.ts";
import { type Pointer, Sketching, thinned, touches } from "./sketching.ts";
import { brushStyle, cutStyle, sketchStyle, waitStyle } from "./styles.ts";
import { SIZES, ToolBar } from "./toolbar.ts";
import { type Tool, type ToolName, TOOLS, toolOf } from "./tools.ts";

export interface AnnotatorParts {
  map: Map;
  frame: Frame;
  model: Model;
  stage: HTMLElement;
  measures: Measures;
  /** The level that is seen at a resolution of the frame. */
  level(resolution: number): number;
  go(extent: Extent): void;
  /** What is said beside the pointer; null for nothing. */
  tip(lines: string[] | null): void;
  hide(changes: number[]): void;
}

const STORED = { size: 40, tolerance: 12, snap: false };
const FINE_PX = 8;
const PASTED_PX = 16;
const MOST_MEASURED = 2000;

export class Annotator {
  readonly bar: ToolBar;
  /** What stands in the card of the layer: its classes, and what is selected. */
  readonly card = make("div");
  /** What stands below the cards of the layers. */
  readonly cards: HTMLElement[];
  private readonly classes: ClassList;
  private readonly selected: SelectedCard;
  private readonly history: HistoryCard;
  private readonly find: FindCard;
  /** Where Python can learn. */
  private readonly learning: LearningCard | null;
  private readonly sketching: Sketching;
  private readonly view = newId();
  private readonly stop = new AbortController();
  private readonly follow = { tool: () => this.followTool(), active_class: () => this.show(), selection: () => this.followSelection(), learning: () => this.showLearning() };
  private tool: Tool;
  private settings = { ...STORED };
  private revision = -1;
  private drawing = false;
  private waiting = false;

  constructor(private readonly parts: AnnotatorParts, readonly layer: DocumentLayer) {
    const { map, stage, model, frame } = parts;
    this.tool = this.usable(toolOf((model.get("tool") as string | undefined) ?? "pan"));
    this.bar = new ToolBar({
      pick: (tool) => this.pick(tool),
      snap: (snap) => this.set({ snap }, true),
      undo: () => this.undo(),
      redo: () => this.redo(),
      retry: () => layer.queue.retry(),
      discard: () => layer.discard(),
      size: (size) => this.set({ size }),
      tolerance: (tolerance) => this.set({ tolerance }),
    });
    this.classes = new ClassList({
      pick: (name) => this.pickClass(name),
      hide: (name, hidden) => this.parts.hide(layer.setHidden(name, hidden)),
      save: (one, before) => this.saveClass(one, before),
      remove: (name, to) => this.removeClass(name, to),
      count: async (name) => (await layer.ask<{ ids: string[] }>("find", { filter: { class: name } })).ids.length,
    });
    this.selected = new SelectedCard({
      classify: (name) => this.classify(name),
      rename: (name) => this.alter({ [NAME]: name }, "name"),
      review: (state) => this.alter({ [REVIEW]: state }, "review"),
      comment: (text) => this.alter({ [commentField(layer.author)]: text }, "comment"),
      merge: () => this.merge(),
      simplify: () => this.ask("simplify", { tolerance: this.pixels(this.resolution) }),
      fill: () => this.ask("fill", {}),
      copy: () => document.execCommand("copy"),
      remove: () => this.remove(),
      leave: () => this.select([]),
    });
    this.history = new HistoryCard({
      fetch: async (before, object) => (await layer.ask<{ edits: HistoryEntry[] }>("history", { before, object })).edits,
      go: (objects) => this.goTo(objects),
      writable: () => layer.readOnly === null,
      revert: (edit) => layer.edit({ action: "revert", reverts: edit }),
    });
    const squared = (area: number): number => area / (frame.spacing ** 2 * layer.placement.unit[0] * layer.placement.unit[1]);
    this.find = new FindCard({
      pixels: squared,
      extent: () => this.box(this.extent()),
      find: (filter) => this.search(filter),
    }, `${frame.base.metre ? frame.info.unit : "px"}²`);
    this.learning = !layer.scene.document!.can?.includes("learn") ? null : new LearningCard({
      learn: (action) => layer.ask(action, { type: "learn" }),
      color: (name) => layer.colorOf(name),
    });
    this.card.append(this.classes.element, ...(this.learning ? [this.learning.element] : []), this.selected.element);
    this.cards = [this.find.element, this.history.element];
    this.sketching = new Sketching(map, stage, this.tool, {
      style: (tool) => this.style(tool),
      drawing: (geometry) => this.measure(geometry),
      drawn: (tool, geometry, pointer) => this.drawn(tool, geometry, pointer),
      modifying: (features) => layer.hold(features.map((one) => one.getId() as string)),
      modified: (features) => this.modified(features),
      boxed: (extent, { shift }) => this.selectWithin(extent, shift),
      clicked: ({ coordinate, originalEvent }) => this.click(coordinate, originalEvent as PointerEvent),
      neighbours: (extent) => this.neighbours(extent),
    });
    layer.events = { changed: () => this.changed(), told: (text) => this.bar.say(text) };
    for (const [trait, act] of Object.entries(this.follow)) model.on(`change:${trait}`, act as never);
    const { signal } = this.stop;
    stage.addEventListener("copy", (event) => this.copy(event), { signal });
    stage.addEventListener("paste", (event) => this.paste(event), { signal });
    stage.addEventListener("keyup", (event) => { if (event.key === " ") this.hold(false); }, { signal });
    stage.addEventListener("blur", () => this.hold(false), { signal });
    stage.addEventListener("pointermove", () => stage.classList.remove("dhv-keyed"), { signal });
    window.addEventListener("beforeunload", (event) => {
      if (layer.queue.saving.state !== "saved") event.preventDefault();
    }, { signal });
    this.use();
    const chosen = model.get("selection") as string[] | undefined;
    if (chosen?.length) layer.select(chosen);
    this.show();
  }

  close(): void {
    this.stop.abort();
    for (const [trait, act] of Object.entries(this.follow)) this.parts.model.off(`change:${trait}`, act as never);
    this.sketching.close();
    this.parts.stage.removeAttribute("data-tool");
    for (const card of [this.bar.element, ...this.cards]) card.remove();
  }

  /** Whether the pointer draws, so that nothing is said of what lies under it. */
  get busy(): boolean {
    return this.drawing || (this.tool.draw !== undefined && this.tool.name !== "wand");
  }

  /** What keys do, by the names of groups. */
  keys(): Record<string, Key[]> {
    const tools = TOOLS.map(({ name, key, does }): Key => ({ keys: [key], shown: key.toUpperCase(), does, act: () => this.pick(name) }));
    const drawing: Key[] = [
      { keys: ["n"], shown: "N", does: "Snap to neighbours", act: () => this.set({ snap: !this.settings.snap }, true) },
      { keys: ["["], shown: "[ or ]", does: "Smaller or larger brush", act: () => this.resize(1 / 1.2) },
      { keys: ["]"], shown: "", does: "", act: () => this.resize(1.2) },
      { keys: [" "], shown: "Space", does: "Held down, the pointer moves the view", act: () => this.hold(true) },
      { keys: ["Enter"], shown: "Enter", does: "End a shape; without a mouse, set a corner in the middle of the view", act: () => this.enter(false) },
      { keys: [], shown: "Escape", does: "Give up a shape, then the selection" },
      { keys: ["Delete", "Backspace"], shown: "Delete", does: "Delete what is selected", act: () => this.remove() },
      { keys: ["j"], shown: "J", does: "Merge what is selected", act: () => this.merge() },
      ...(this.learning ? [{ keys: ["g"], shown: "G", does: "Go where the learner is least sure", act: () => void this.learning?.learn("next") }] : []),
      { keys: [], shown: "1 to 9", does: "The class with this key: for what is drawn next, with Select for what is selected" },
      { keys: [], shown: "Ctrl A", does: "Select all in view" },
      { keys: [], shown: "Ctrl C or Ctrl V", does: "Copy, paste, also into another view" },
      { keys: [], shown: "Ctrl Z or Ctrl Shift Z", does: "Undo, redo" },
    ];
    return { Tools: tools, Drawing: drawing };
  }

  /** Take a key that only drawing knows; returns whether it was one. */
  type(event: KeyboardEvent): boolean {
    const { key, shiftKey } = event;
    if (event.ctrlKey || event.metaKey) {
      const low = key.toLowerCase();
      if (low === "z") shiftKey ? this.redo() : this.undo();
      else if (low === "y") this.redo();
      else if (low === "a") this.selectWithin(this.extent(), false);
      else return false;
      return true;
    }
    if (event.altKey) return false;
    const one = this.layer.classes.find(({ shortcut }) => shortcut === key);
    if (one) this.pickClass(one.name);
    else if (key === "Escape") return this.leave();
    else if (key === "Enter" && shiftKey) this.enter(true);
    else if (shiftKey && key.startsWith("Arrow")) this.nudge(key);
    else {
      if (key.startsWith("Arrow")) this.parts.stage.classList.add("dhv-keyed");
      return false;
    }
    return true;
  }

  /** Choose an object, as the table or the keyboard does. */
  choose(id: string): void {
    this.select([id]);
  }

  /** Take over what Python says of the document now. */
  renew(): void {
    const tool = this.usable(this.tool);
    // Whoever draws at the moment goes on.
    if (tool !== this.tool) {
      this.tool = tool;
      this.use();
    }
    this.show();
  }

  private get resolution(): number {
    return this.parts.map.getView().getResolution() ?? 1;
  }

  /** A length of the frame in level-0 pixels. */
  private pixels(length: number): number {
    return length / this.layer.placement.unit[0];
  }

  private get active(): string | null {
    return (this.parts.model.get("active_class") as string | null | undefined) ?? null;
  }

  private extent(): Extent {
    return this.parts.map.getView().calculateExtent(this.parts.map.getSize());
  }

  /** A part of the frame in level-0 pixels: left, top, right, bottom. */
  private box([left, bottom, right, top]: Extent): [number, number, number, number] {
    const { placement } = this.layer;
    return [...placement.pixels([left!, top!]), ...placement.pixels([right!, bottom!])];
  }

  private set(settings: Partial<typeof STORED>, anew = false): void {
    this.settings = { ...this.settings, ...settings };
    if (anew) this.use();
    this.show();
    this.parts.map.render();
  }

  private resize(factor: number): void {
    this.set({ size: Math.round(Math.min(SIZES.most, Math.max(SIZES.least, this.settings.size * factor))) });
  }

  /** A document that cannot be written is looked at. */
  private usable(tool: Tool): Tool {
    return this.layer.readOnly !== null && tool.name !== "select" ? toolOf("pan") : tool;
  }

  private pick(name: ToolName): void {
    if (this.layer.readOnly !== null && toolOf(name) !== this.usable(toolOf(name))) {
      this.bar.say(`Read-only: ${this.layer.readOnly}`, false);
      return;
    }
    this.parts.model.set("tool", name);
    this.parts.model.save_changes();
    this.followTool();
    this.parts.stage.focus();
  }

  private followTool(): void {
    const tool = this.usable(toolOf((this.parts.model.get("tool") as string | undefined) ?? "pan"));
    if (tool === this.tool) return;
    this.tool = tool;
    this.use();
    this.show();
  }

  private use(): void {
    const { stage } = this.parts;
    stage.dataset.tool = this.tool.name;
    const editing = this.tool.name === "edit";
    this.layer.showVertices(editing);
    this.sketching.use(this.tool, { snap: this.settings.snap, features: editing ? this.layer.features(this.layer.selection) : [] });
  }

  private hold(held: boolean): void {
    this.sketching.held = held;
    this.parts.stage.classList.toggle("dhv-held", held);
  }

  private enter(end: boolean): void {
    if (!this.sketching.busy) this.parts.stage.classList.add("dhv-keyed");
    if (this.sketching.enter(end) || this.tool.draw) return;
    const hit = this.layer.hit(this.parts.map.getView().getCenter()!, this.resolution);
    this.select(hit?.id === undefined ? [] : [hit.id]);
  }

  private leave(): boolean {
    if (this.sketching.abort()) return true;
    if (!this.layer.selection.size) return false;
    this.select([]);
    return true;
  }

  private nudge(key: string): void {
    const view = this.parts.map.getView();
    const step = FINE_PX * this.resolution;
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[key]!;
    const angle = view.getRotation();
    this.parts.stage.classList.add("dhv-keyed");
    view.adjustCenter([step * (x! * Math.cos(angle) - y! * Math.sin(angle)), step * (x! * Math.sin(angle) + y! * Math.cos(angle))]);
  }

  private style(tool: Tool): ReturnType<typeof sketchStyle> | ReturnType<typeof brushStyle> {
    const color = this.layer.colorOf(this.active);
    if (tool.name === "brush") return brushStyle(color, () => this.settings.size / 2);
    if (tool.name === "eraser") return brushStyle(null, () => this.settings.size / 2);
    if (tool.name === "wand") return waitStyle(color);
    return tool.name === "split" || tool.name === "hole" ? cutStyle() : sketchStyle(color);
  }

  private measure(geometry: Geometry | null): void {
    this.drawing = geometry !== null;
    const makes = this.tool.makes === "shape" || this.tool.name === "edit";
    const lines = geometry && makes ? this.parts.measures.of(geometry).map(({ text }) => text) : [];
    this.parts.tip(geometry ? lines : null);
  }

  /** Make what was drawn into an edit. */
  private drawn(tool: Tool, geometry: Geometry, pointer: Pointer): void {
    if (tool.makes === "shape") this.create(tool, geometry);
    else if (tool.name === "brush" && !pointer.alt) this.paint(geometry as LineString, pointer);
    else if (tool.name === "brush" || tool.name === "eraser") this.erase(geometry as LineString);
    else if (tool.name === "wand") this.grow(geometry);
    else this.cut(tool.name as "split" | "hole", geometry);
  }

  private get classification(): DocumentClass | null {
    const found = this.layer.classes.find(({ name }) => name === this.active);
    return found ? { name: found.name, color: found.color } : null;
  }

  private create(tool: Tool, geometry: Geometry): void {
    const resolution = this.resolution;
    const kept = tool.name === "freehand" || tool.name === "line" ? thinned(geometry, resolution / 2) : geometry;
    // A slip of the mouse is no shape.
    const slip = "getArea" in kept ? (kept as Polygon).getArea() < 4 * resolution ** 2 : kept instanceof LineString && kept.getLength() < 2 * resolution;
    if (slip) return;
    const id = newId();
    const classification = this.classification;
    this.layer.edit({
      action: "apply", tool: tool.name,
      changes: [creation(id, this.layer.placement.geojson(kept), classification ? { [CLASS]: classification } : {})],
    });
    this.select([id]);
  }

  /** What was drawn, as Python takes it. */
  private path(geometry: Geometry): [number, number][] {
    const thin = thinned(geometry, this.resolution / 4);
    const places = thin instanceof Point ? [thin.getCoordinates()] : rimOf(thin as LineString | Polygon);
    return places.map((place) => this.layer.placement.pixels(place));
  }

  /** Paint on at the selected object where the stroke begins on it, or with Shift; else a new one. */
  private paint(line: LineString, { shift }: Pointer): void {
    const radius = (this.settings.size / 2) * this.resolution;
    const [only] = this.layer.selection.size === 1 ? this.layer.selection : [];
    const geometry = only === undefined ? null : this.layer.geometry(only);
    const start = line.getFirstCoordinate();
    const on = only !== undefined && geometry?.getType().endsWith("Polygon") && (shift || touches([start], geometry, radius));
    this.make("brush", line, { radius: this.pixels(radius) }, on ? only : null);
  }

  private grow(point: Geometry): void {
    const { tolerance } = this.settings;
    const [only] = this.layer.selection.size === 1 ? this.layer.selection : [];
    const geometry = only === undefined ? null : this.layer.geometry(only);
    const at = (point as Point).getCoordinates();
    const on = only !== undefined && geometry?.getType().endsWith("Polygon") && geometry.intersectsCoordinate(at);
    this.make("wand", point, { tolerance, level: this.parts.level(this.resolution) }, on ? only : null);
  }

  /** Let Python add to an object, or make a new one. */
  private make(tool: ToolName, geometry: Geometry, request: Record<string, unknown>, object: string | null): void {
    const create = newId();
    this.layer.edit({
      action: "draw", tool, path: this.path(geometry), class: this.active, ...request, objects: object === null ? [] : [object], create,
    });
    this.select([object ?? create]);
  }

  private erase(line: LineString): void {
    const radius = (this.settings.size / 2) * this.resolution;
    const objects = this.under(line.getCoordinates(), radius);
    if (objects.length) this.layer.edit({ action: "draw", tool: "eraser", path: this.path(line), radius: this.pixels(radius), objects });
  }

  private cut(tool: "split" | "hole", geometry: Geometry): void {
    const objects = this.under(rimOf(geometry as LineString | Polygon), 0);
    if (!objects.length) this.bar.say(tool === "split" ? "There is nothing to split: draw the line across an object." : "There is nothing to cut a hole into.");
    else this.layer.edit({ action: "draw", tool, path: this.path(geometry), objects, create: newId() });
  }

  /** Objects under a path: the selected ones among them, if there are some. */
  private under(path: number[][], radius: number): string[] {
    const whole = path.reduce((extent, place) => extend(extent, [...place, ...place]), createEmpty());
    const around: Extent = [whole[0]! - radius, whole[1]! - radius, whole[2]! + radius, whole[3]! + radius];
    const found = this.layer.within(around).filter((id) => {
      const geometry = this.layer.geometry(id);
      return geometry !== null && touches(path, geometry, radius);
    });
    const selected = found.filter((id) => this.layer.selection.has(id));
    return selected.length ? selected : found;
  }

  /** Something that Python does with what is selected. */
  private ask(tool: string, request: Record<string, unknown>): void {
    const objects = [...this.layer.selection];
    if (objects.length) this.layer.edit({ action: "draw", tool, objects, ...request });
  }

  private merge(): void {
    if (this.layer.selection.size < 2) this.bar.say("Select two objects or more to merge them.");
    else this.ask("merge", {});
  }

  private remove(): void {
    if (this.layer.readOnly !== null || (this.tool.name === "edit" && this.sketching.removeVertex())) return;
    const changes = this.changes({ exists: false });
    if (!changes.length) return;
    this.layer.edit({ action: "apply", tool: "delete", changes });
    this.select([]);
  }

  private changes(after: Fields): Change[] {
    return [...this.layer.selection].map((id) => changeOf(this.layer.object(id), id, after));
  }

  private alter(after: Fields, tool: string): void {
    const changes = this.changes(after);
    if (changes.length) this.layer.edit({ action: "apply", tool, changes });
  }

  private classify(name: string | null): void {
    // A class that was just made is not yet among those of the layer.
    this.alter({ [CLASS]: name === null ? null : { name, color: this.layer.colorOf(name) } }, "class");
  }

  /** A class for what is drawn next; in the tools that select, also for what is selected. */
  private pickClass(name: string | null): void {
    this.activate(name);
    if (this.layer.readOnly === null && this.layer.selection.size) {
      if (this.tool.draw) this.select([]);
      else this.classify(name);
    }
    this.use();
    this.show();
  }

  private activate(name: string | null): void {
    this.parts.model.set("active_class", name);
    this.parts.model.save_changes();
  }

  private saveClass({ name, color, shortcut }: DocumentClass, before: string | null): void {
    const renamed = before !== null && before !== name;
    this.layer.edit({ action: "class", name: before ?? name, ...(renamed && { rename: name }), color, shortcut: shortcut ?? "" });
    if (before === null) this.pickClass(name);
    else if (before === this.active) this.activate(name);
  }

  private removeClass(name: string, to: string | null): void {
    this.layer.edit({ action: "class", name, remove: true, to });
    if (this.active === name) this.pickClass(to);
  }

  private modified(features: Feature[]): void {
    const changes = features.map((one) => {
      const id = one.getId() as string;
      return changeOf(this.layer.object(id), id, { geometry: this.layer.placement.geojson(one.getGeometry()!) });
    });
    this.layer.edit({ action: "apply", tool: "edit", changes });
    this.layer.release();
  }

  private undo(): void {
    if (this.sketching.abort() || this.layer.readOnly !== null) return;
    this.layer.edit({ action: "undo" });
  }

  private redo(): void {
    if (this.layer.readOnly === null) this.layer.edit({ action: "redo" });
  }

  private click(coordinate: number[], { shiftKey, ctrlKey, metaKey, altKey }: PointerEvent): void {
    if (altKey) return;
    const id = this.layer.hit(coordinate, this.resolution)?.id;
    const more = shiftKey || ctrlKey || metaKey;
    if (id === undefined) {
      if (!more) this.select([]);
    } else if (more && this.layer.selection.has(id)) this.select([...this.layer.selection].filter((one) => one !== id));
    else this.select([id], more);
  }

  private select(ids: string[], more = false): void {
    this.layer.select(more ? [...this.layer.selection, ...ids] : ids);
    this.tellSelection();
    if (this.tool.name === "edit") this.use();
  }

  /** Select what lies in a part of the frame; of dots Python knows the names. */
  private selectWithin(extent: Extent, more: boolean): void {
    this.select(this.layer.within(extent), more);
    if (!this.layer.isDotted(extent)) return;
    this.layer.findWithin(this.box(extent)).then((ids) => this.select(ids, true), (error: Error) => this.bar.say(error.message));
  }

  private tellSelection(): void {
    const { model } = this.parts;
    const ids = [...this.layer.selection];
    if (JSON.stringify(model.get("selection") ?? []) === JSON.stringify(ids)) return;
    model.set("selection", ids);
    model.save_changes();
  }

  private followSelection(): void {
    const ids = (this.parts.model.get("selection") as string[] | undefined) ?? [];
    if (ids.join() === [...this.layer.selection].join()) return;
    this.layer.select(ids);
    if (this.tool.name === "edit") this.use();
  }

  private async search(filter: Record<string, unknown>): Promise<number> {
    const { ids } = await this.layer.ask<{ ids: string[] }>("find", { filter });
    this.select(ids);
    return ids.length;
  }

  private goTo(objects: string[]): void {
    this.select(objects);
    const extent = objects.slice(0, MOST_MEASURED).reduce((all, id) => {
      const geometry = this.layer.geometry(id);
      return geometry ? extend(all, geometry.getExtent()) : all;
    }, createEmpty());
    if (!isEmpty(extent)) this.parts.go(extent);
  }

  private neighbours(extent: Extent): Feature[] {
    // A vertex would stay where it is, held by its own sides.
    const own = this.tool.name === "edit" ? this.layer.selection : new Set<string>();
    return this.layer.shapes(this.layer.within(extent).filter((id) => !own.has(id)));
  }

  private copy(event: ClipboardEvent): void {
    const features = [...this.layer.selection].flatMap((id) => this.layer.object(id) ?? []);
    if (!features.length) return;
    event.preventDefault();
    event.clipboardData?.setData("text/plain", write(features, this.parts.frame, this.view));
    this.bar.say(features.length === 1 ? "Copied." : `${features.length} copied.`);
  }

  private paste(event: ClipboardEvent): void {
    const { features, own } = read(event.clipboardData?.getData("text/plain") ?? "", this.parts.frame, this.view);
    if (!features.length || this.layer.readOnly !== null) return;
    event.preventDefault();
    const step = own ? this.pixels(PASTED_PX * this.resolution) : 0;
    const changes = features.map((one) => this.pasted(one, step));
    this.layer.edit({ action: "apply", tool: "paste", changes });
    this.select(changes.map(({ object }) => object));
  }

  private pasted({ geometry, properties }: GeoFeature, step: number): Change {
    const { classification, name } = properties ?? {};
    const fields = { ...(classification && { [CLASS]: classification }), ...(name && { [NAME]: name }) };
    return creation(newId(), moved(geometry, [step, step]), fields);
  }

  /** The document has changed: show it, once for all that changes in one go. */
  private changed(): void {
    if (this.waiting) return;
    this.waiting = true;
    queueMicrotask(() => {
      this.waiting = false;
      if (this.stop.signal.aborted) return;
      this.show();
      this.tellSelection();
      this.sketching.refresh();
    });
  }

  private show(): void {
    const { layer } = this;
    const { size, snap, tolerance } = this.settings;
    const readOnly = layer.readOnly !== null;
    const sizeText = this.parts.measures.length(size * this.resolution);
    this.bar.show({ tool: this.tool, snap, saving: layer.queue.saving, readOnly: layer.readOnly, size, sizeText, tolerance });
    this.classes.show({ classes: layer.classes, active: this.active, readOnly, isHidden: (name) => layer.isHidden(name) });
    this.find.show(layer.classes);
    this.showSelected(readOnly);
    this.showLearning();
    const [only] = layer.selection.size === 1 ? layer.selection : [];
    this.history.follow(only ?? null);
    if (layer.revision !== this.revision) this.history.refresh();
    this.revision = layer.revision;
  }

  private showLearning(): void {
    const learned = this.parts.model.get("learning") as Learned | undefined;
    if (learned) this.learning?.show(learned, this.layer.readOnly !== null);
  }

  private showSelected(readOnly: boolean): void {
    const { layer } = this;
    const { size: count } = layer.selection;
    const features = [...layer.selection].slice(0, MOST_MEASURED).flatMap((id) => layer.object(id) ?? []);
    const [first] = features;
    const common = <T>(of: (feature: GeoFeature) => T): T | undefined => {
      const found = new Set(features.map(of));
      return found.size > 1 ? undefined : [...found][0];
    };
    this.selected.show({
      count, readOnly, classes: layer.classes,
      name: features.length ? common(classOf) : null, review: features.length ? common(reviewOf) : null,
      title: (count === 1 && first?.properties.name) || null,
      measures: this.measures(count, features),
      comments: count === 1 && first ? commentsOf(first) : [],
    });
  }

  private measures(count: number, features: GeoFeature[]): { name: string; text: string }[] {
    const geometries = features.map(({ id, geometry }) => this.layer.geometry(id) ?? this.layer.placement.geometry(geometry));
    if (geometries.length === 1) return this.parts.measures.of(geometries[0]!);
    if (geometries.length < count) return [];
    const sum = (of: (one: never) => number, kind: string): number =>
      geometries.filter((one) => one.getType().endsWith(kind)).reduce((all, one) => all + of(one as never), 0);
    const area = sum((one: Polygon) => one.getArea(), "Polygon");
    const length = sum((one: LineString) => one.getLength(), "LineString");
    return [
      ...(area ? [{ name: "Total area", text: this.parts.measures.area(area) }] : []),
      ...(length ? [{ name: "Total length", text: this.parts.measures.length(length) }] : []),
    ];
  }
}

/** The places that a line leads through, or the rim of an area. */
function rimOf(geometry: LineString | Polygon): number[][] {
  return geometry instanceof Polygon ? geometry.getCoordinates()[0]! : geometry.getCoordinates();
}
