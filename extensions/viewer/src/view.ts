/** The viewer: a map of tiles and vectors, a panel of layers, and the state it shares with its model. */
import Map from "ol/Map.js";
import View from "ol/View.js";
import OverviewMap from "ol/control/OverviewMap.js";
import { defaults as defaultInteractions } from "ol/interaction/defaults.js";
import type { Extent } from "ol/extent.js";
import type BaseLayer from "ol/layer/Base.js";
import type MapBrowserEvent from "ol/MapBrowserEvent.js";
import "ol/ol.css";
import "./viewer.css";
import { CachedTransport } from "./cache.ts";
import { dragWindow } from "./contrast.ts";
import { button, make } from "./dom.ts";
import { Annotator } from "./drawing/annotator.ts";
import { DocumentLayer } from "./drawing/layer.ts";
import { Frame, grouped, niceLength, sayLength, tidy } from "./frame.ts";
import { actOf, Help, type Key } from "./keys.ts";
import { Measures } from "./measures.ts";
import { Panel } from "./panel.ts";
import { Probe } from "./probe.ts";
import { RasterLayer } from "./raster.ts";
import { type Hit, ShapesLayer } from "./shapes.ts";
import { download, takeSnapshot } from "./snapshot.ts";
import { AnnotationTable } from "./table.ts";
import { followTheme } from "./theme.ts";
import type { Transport } from "./transport.ts";
import { isPlain, type LayerScene, type LayerSettings, type Model, type Settings } from "./types.ts";

const KEEP_MS = 150;
const BAR_PX = 110;
const NARROW_PX = 600;
const TOOLS_PX = 46;
const OVERVIEW_PX = 140;
// A level is shown up to this many of its pixels for one of the screen.
const FINEST = 1.25;
const MOST_ZOOM = 16;

export interface ViewOptions {
  transport: Transport;
  /** What "Try again" does; without it, the tiles that failed are asked for again. */
  reopen?: () => void;
}

type AnyLayer = RasterLayer | ShapesLayer | DocumentLayer;
type Annotated = ShapesLayer | DocumentLayer;

export class ViewerView {
  private readonly transport: CachedTransport;
  private readonly frame: Frame;
  private readonly measures: Measures;
  private layers: AnyLayer[];
  private readonly panel: Panel;
  private readonly table: AnnotationTable;
  private readonly root = make("div", { class: "dhlab-viewer", "data-lm-suppress-shortcuts": "true" });
  private readonly stage = make("div", {
    class: "dhv-stage", tabindex: 0, role: "application", "aria-roledescription": "pan and zoom viewer",
  });
  private readonly status = make("div", { class: "dhv-status" });
  private readonly place = make("span", { class: "dhv-place" });
  private readonly value = make("span", { class: "dhv-pixel" });
  private readonly bar = make("span", { class: "dhv-bar" });
  private readonly barLabel = make("span");
  private readonly magnification = make("span", { class: "dhv-zoom" });
  private readonly alert = make("div", { class: "dhv-alert", role: "alert", hidden: true });
  private readonly alertText = make("span");
  private readonly tip = make("div", { class: "dhv-tip", role: "tooltip", hidden: true });
  /** What belongs to drawing, between the layers and the table. */
  private readonly cards = make("div");
  private annotator: Annotator | undefined;
  private pointerAt: number[] = [0, 0];
  private readonly map: Map;
  private readonly view: View;
  private readonly observer: ResizeObserver;
  private readonly probe: Probe;
  private readonly help: Help;
  private readonly unfollow: () => void;
  private readonly reopen: () => void;
  /** What was last said of the layers, by their ids. */
  private told: Record<number, string> = {};
  private settings: Settings;
  private index: Record<string, number>;
  private keep: ReturnType<typeof setTimeout> | undefined;
  private fitted = true;
  private measured = false;
  private placed: boolean;
  private storing = false;
  private following = false;

  constructor(private readonly model: Model, el: HTMLElement, { transport, reopen }: ViewOptions) {
    const scene = (model.get("_scene") as { layers: LayerScene[] }).layers;
    const base = scene.find((layer) => layer.base)!;
    this.reopen = reopen ?? (() => this.eachRaster((layer) => layer.retry()));
    this.placed = model.get("center") !== null && model.get("zoom") !== null;
    this.settings = model.get("settings") as Settings;
    this.index = model.get("index") as Record<string, number>;
    this.transport = new CachedTransport(transport);
    this.frame = new Frame(base);
    this.measures = new Measures(this.frame);
    this.layers = scene.map((layer) => this.makeLayer(layer));
    this.told = told(scene);
    this.table = new AnnotationTable({
      go: (layer, hit) => this.goTo(layer, hit),
      point: (layer, hit) => layer.mark(hit),
      area: (pixels) => this.measures.area(pixels * this.frame.info.aspect[0] * this.frame.info.aspect[1]),
    }, model.get("height") === null);
    this.panel = new Panel(scene, {
      change: (id, changes) => this.change(id, changes),
      slice: (axis, at) => this.slice(axis, at),
      classes: ({ id }) => (this.annotator?.layer.scene.id === id ? this.annotator.card : null),
    }, [this.cards, this.table.element]);
    this.probe = new Probe(() => this.rasters, this.transport, (text) => (this.value.textContent = text));
    this.help = new Help(() => this.keys());
    this.stage.setAttribute("aria-label", `${base.name}: drag or arrow keys pan, plus and minus zoom, question mark for help`);
    this.unfollow = followTheme(this.root);
    this.lay(el);
    const [height, width] = this.frame.info.shape;
    const most = Math.max(width, height);
    this.view = new View({
      projection: this.frame.projection,
      center: [width / 2, -height / 2],
      extent: [-width / 2, -1.5 * height, 1.5 * width, height / 2],
      constrainOnlyCenter: true,
      smoothExtentConstraint: false,
      maxResolution: Math.max(1, most / 100),
      minResolution: 1 / MOST_ZOOM,
      resolution: Math.max(1 / MOST_ZOOM, most / 500),
      enableRotation: true,
      constrainRotation: false,
    });
    this.map = new Map({
      target: this.stage,
      layers: this.layers.map((layer) => layer.layer as BaseLayer),
      view: this.view,
      interactions: defaultInteractions({ altShiftDragRotate: true, pinchRotate: true }),
      controls: [this.overview(base)],
      keyboardEventTarget: this.stage,
      maxTilesLoading: 64, // they travel together
    });
    if (!isPlain(base)) {
      dragWindow(this.stage, {
        display: base.display ?? [0, 255],
        read: () => this.settings[String(base.id)]!,
        change: (changes) => this.change(base.id, changes),
        free: () => (this.stage.dataset.tool ?? "pan") === "pan",
      });
    }
    this.annotate();
    this.panel.list(scene);
    this.listen();
    this.observer = new ResizeObserver(() => this.resized());
    this.observer.observe(this.stage);
    this.panel.apply(this.settings, this.index);
    this.resized();
    // For tests and for those who want to script the page.
    Object.assign(this.root, { dhlab: { map: this.map, frame: this.frame, transport } });
  }

  close(): void {
    if (this.keep !== undefined) this.store();
    this.observer.disconnect();
    for (const [event, act] of this.traits) this.model.off(event, act as never);
    this.probe.leave();
    this.annotator?.close();
    this.unfollow();
    for (const layer of [...this.layers, this.small]) layer?.close();
    this.transport.close();
    this.map.setTarget(undefined);
    this.map.dispose();
    this.root.remove();
  }

  private get rasters(): RasterLayer[] {
    return this.layers.filter((layer) => layer instanceof RasterLayer);
  }

  private get shapes(): Annotated[] {
    return this.layers.filter((layer) => !(layer instanceof RasterLayer)) as Annotated[];
  }

  /** Let people draw on the topmost document, if there is one. */
  private annotate(): void {
    const document = this.layers.filter((layer) => layer instanceof DocumentLayer).at(-1);
    if (document === this.annotator?.layer) {
      this.annotator?.renew();
      return;
    }
    this.annotator?.close();
    this.annotator = document && new Annotator({
      map: this.map, frame: this.frame, model: this.model, stage: this.stage, measures: this.measures,
      level: (resolution) => Math.max(0, this.frame.info.resolutions.filter((one) => one <= resolution * FINEST).length - 1),
      go: (extent) => this.show(extent),
      tip: (lines) => this.tipBeside(lines?.map((line) => make("div", {}, line)) ?? []),
      hide: (hidden) => this.change(document.scene.id, { hidden }),
    }, document);
    this.root.classList.toggle("dhv-drawable", this.annotator !== undefined);
    if (this.annotator) {
      this.stage.append(this.annotator.bar.element);
      this.cards.append(...this.annotator.cards);
    }
  }

  /** Bring a shape into the middle, as large as lets its surroundings be seen. */
  private goTo(layer: Annotated, hit: Hit): void {
    const extent = layer.extent(hit);
    if (!extent) return;
    this.stage.focus();
    if (layer === this.annotator?.layer && hit.id !== undefined) this.annotator.choose(hit.id);
    this.show(extent);
  }

  private show(extent: Extent): void {
    const [width = 0, height = 0] = this.map.getSize() ?? [];
    this.view.fit(extent, { padding: [height / 4, width / 4, height / 4, width / 4], minResolution: 0.5, duration: glide(300) });
  }

  /** Take over which layers there are, and those whose thing was replaced. */
  private applyScene(scene: LayerScene[]): void {
    this.settings = this.model.get("settings") as Settings;
    const count = this.layers.length;
    const left = new Set(this.layers);
    const before = this.told;
    this.told = told(scene);
    this.layers = scene.map((layer) => {
      const known = this.layers.find((one) => one.scene.id === layer.id);
      if (!known || !fits(known.scene, layer)) return this.makeLayer(layer);
      left.delete(known);
      if (before[layer.id] !== this.told[layer.id]) known.renew(layer);
      return known;
    });
    for (const layer of left) layer.close();
    this.map.setLayers(this.layers.map((layer) => layer.layer as BaseLayer));
    this.hover(null);
    this.annotate();
    this.panel.list(scene);
    if (scene.length > count) this.showPanel();
    this.refresh();
  }

  /** Show the list of layers where there is something to choose, and room beside the stage. */
  private showPanel(): void {
    const useful = this.layers.length > 1 || this.panel.useful;
    this.panel.element.hidden = !useful || this.root.clientWidth < NARROW_PX;
  }

  private makeLayer(layer: LayerScene): AnyLayer {
    const own = this.settings[String(layer.id)]!;
    const fail = (message: string): void => this.say(message);
    if (layer.document) return new DocumentLayer(layer, this.frame, this.transport, own, fail);
    if (layer.kind === "shapes") return new ShapesLayer(layer, this.frame, this.transport, own, fail);
    return new RasterLayer(layer, this.frame, this.transport, { settings: own, index: this.index }, fail);
  }

  private overview(base: LayerScene): OverviewMap {
    const small = new RasterLayer(
      base, this.frame, this.transport, { settings: { ...this.settings[String(base.id)]!, opacity: 1, visible: true }, index: this.index },
      () => undefined,
    );
    this.small = small;
    const [height, width] = this.frame.info.shape;
    const fits = Math.max(width, height) / (OVERVIEW_PX - 8);
    for (const [side, length] of [["width", width], ["height", height]] as const) {
      const shown = Math.max(OVERVIEW_PX / 3, length / fits + 8);
      this.root.style.setProperty(`--dhv-overview-${side}`, `${Math.round(shown)}px`);
    }
    return new OverviewMap({
      className: "dhv-overview ol-overviewmap",
      layers: [small.layer],
      collapsed: false,
      tipLabel: "Overview map",
      view: new View({
        projection: this.frame.projection, center: [width / 2, -height / 2], resolution: fits,
        minResolution: fits, maxResolution: fits, extent: this.frame.extent, showFullExtent: true,
      }),
    });
  }
  private small: RasterLayer | undefined;

  private lay(el: HTMLElement): void {
    const tools = make("div", { class: "dhv-tools", role: "group", "aria-label": "View" });
    tools.append(
      button("Zoom in", "plus", () => this.zoomBy(2), "+"),
      button("Zoom out", "minus", () => this.zoomBy(0.5), "-"),
      button("Show all", "fit", () => this.fit(), "0"),
      button("Rotate by 90°", "rotate", () => this.rotateBy(90), "Shift+R"),
      button("Full screen", "full", () => this.toggleFull(), "F"),
      button("Layers", "layers", () => this.togglePanel(), "Shift+L"),
      button("Save the view as PNG", "photo", () => this.save(), "Shift+S"),
      button("Keys and mouse", "help", () => this.help.toggle(), "?"),
    );
    const shut = button("Dismiss", "close", () => (this.alert.hidden = true));
    const again = make("button", { type: "button", class: "dhv-again" }, "Try again");
    again.addEventListener("click", () => {
      this.alert.hidden = true;
      // What is looked at now is what should come back.
      if (this.keep !== undefined) this.store();
      this.reopen();
    });
    this.alert.append(this.alertText, again, shut);
    this.status.append(make("span", { class: "dhv-scale" }, this.bar, this.barLabel), this.magnification, this.place, this.value);
    this.stage.append(tools, this.status, this.alert, this.tip, this.help.element, make("div", { class: "dhv-cross", "aria-hidden": "true" }));
    this.root.append(this.stage, this.panel.element);
    this.setHeight();
    this.root.classList.toggle("dhv-traces", Boolean(this.frame.base.traces));
    el.append(this.root);
  }

  private traits: [string, () => void][] = [];

  private listen(): void {
    const on = (event: string, act: () => void): void => {
      this.traits.push([event, act]);
      this.model.on(event, act as never);
    };
    on("comm_live_update", () => this.say("The kernel was restarted or has gone. Run the cell again to go on."));
    for (const name of ["center", "zoom", "rotation"]) on(`change:${name}`, () => this.follow());
    on("change:settings", () => this.applySettings(this.model.get("settings") as Settings));
    on("change:_scene", () => this.applyScene((this.model.get("_scene") as { layers: LayerScene[] }).layers));
    on("change:index", () => this.applyIndex(this.model.get("index") as Record<string, number>));
    on("change:height", () => this.setHeight());
    this.view.on(["change:center", "change:resolution", "change:rotation"] as never, () => this.moved());
    this.map.on("movestart", () => this.eachRaster((layer) => layer.rest()));
    this.map.on("moveend", () => this.eachRaster((layer, resolution, extent) => layer.prune(resolution, extent)));
    this.map.on("rendercomplete", () => this.table.update(this.shapes));
    this.map.on("loadend", () => this.eachRaster((layer, resolution, extent) => void layer.prefetch(resolution, extent)));
    this.map.on("pointermove", (event) => this.point(event));
    this.stage.addEventListener("pointermove", (event) => {
      const { left, top } = this.stage.getBoundingClientRect();
      this.pointerAt = [event.clientX - left, event.clientY - top];
    }, { capture: true });
    this.stage.addEventListener("pointerleave", () => {
      this.place.textContent = "";
      this.probe.leave();
      this.hover(null);
    });
    // The notebook has shortcuts of its own: what is typed here stays here.
    this.root.addEventListener("keydown", (event) => this.type(event));
    this.map.once("rendercomplete", () => (this.root.dataset.ready = "true"));
    document.addEventListener("fullscreenchange", () => this.map.updateSize());
  }

  private type(event: KeyboardEvent): void {
    event.stopPropagation();
    const { target } = event;
    if (target instanceof HTMLInputElement && ["text", "number"].includes(target.type)) return;
    const control = target instanceof HTMLInputElement || target instanceof HTMLSelectElement;
    if (control && !event.ctrlKey && !event.metaKey) return;
    // What has the focus wants these for itself.
    if (target !== this.stage && [" ", "Enter"].includes(event.key)) return;
    if (this.annotator?.type(event)) {
      event.preventDefault();
      return;
    }
    const act = actOf(Object.values(this.keys()).flat(), event);
    if (act) {
      event.preventDefault();
      act();
    }
  }

  /** What keys do, by the names of groups. */
  private keys(): Record<string, Key[]> {
    const windowed = !isPlain(this.frame.base);
    const slices = Object.values(this.frame.info.axes).some((length) => length > 1);
    const view: Key[] = [
      { keys: [], shown: "drag or arrow keys", does: "Pan" },
      { keys: [], shown: "wheel or + or -", does: "Zoom" },
      ...(windowed ? [] : [{ keys: [], shown: "Shift drag", does: "Zoom to a rectangle" }]),
      { keys: ["0", "Home"], shown: "0", does: "Show all", act: () => this.fit() },
      { keys: ["R"], shown: "Shift R", does: "Rotate by 90°", act: () => this.rotateBy(90) },
      { keys: [], shown: "Alt Shift drag", does: "Rotate freely" },
      ...(windowed ? [{ keys: [], shown: "right drag or Shift drag", does: "Window (across) and level (up and down)" }] : []),
      ...(slices
        ? [
            { keys: ["PageUp"], shown: "Page up", does: "Next slice", act: () => this.step(1) },
            { keys: ["PageDown"], shown: "Page down", does: "Slice before", act: () => this.step(-1) },
          ]
        : []),
      { keys: ["f"], shown: "F", does: "Full screen", act: () => this.toggleFull() },
      { keys: ["L"], shown: "Shift L", does: "Layers", act: () => this.togglePanel() },
      { keys: ["S"], shown: "Shift S", does: "Save the view as PNG", act: () => this.save() },
      { keys: ["?"], shown: "?", does: "This help", act: () => this.help.toggle() },
    ];
    return { View: view, ...this.annotator?.keys() };
  }

  private save(): void {
    const layers = this.layers.map(({ scene }) => ({ scene, settings: this.settings[String(scene.id)]! }));
    const bar = { length: this.bar.clientWidth, label: this.barLabel.textContent ?? "" };
    download(takeSnapshot(this.map, { layers, bar }), `${this.frame.base.name}.png`);
  }

  private zoomBy(factor: number): void {
    const resolution = (this.view.getResolution() ?? 1) / factor;
    this.view.animate({ resolution: this.view.getConstrainedResolution(resolution), duration: glide(200) });
  }

  private rotateBy(degrees: number): void {
    this.view.animate({ rotation: this.view.getRotation() + (degrees * Math.PI) / 180, duration: glide(250) });
  }

  private fit(): void {
    this.view.setRotation(0);
    this.placed = false;
    // The names of traces stand at the left edge, where the tools are.
    const left = this.frame.base.traces ? TOOLS_PX : 8;
    this.view.fit(this.frame.extent, { padding: [8, 8, 8, left], minResolution: 1 / MOST_ZOOM });
    this.fitted = true;
  }

  private toggleFull(): void {
    if (document.fullscreenElement) void document.exitFullscreen();
    else void this.root.requestFullscreen();
  }

  private togglePanel(): void {
    this.panel.element.hidden = !this.panel.element.hidden;
  }

  private step(by: number): void {
    const [axis, length] = Object.entries(this.frame.info.axes).find(([, n]) => n > 1) ?? [];
    if (axis === undefined || length === undefined) return;
    this.slice(axis, Math.min(length - 1, Math.max(0, (this.index[axis] ?? 0) + by)));
  }

  private slice(axis: string, at: number): void {
    this.applyIndex({ ...this.index, [axis]: at });
    this.model.set("index", this.index);
    this.model.save_changes();
  }

  private change(id: number, changes: Partial<LayerSettings>): void {
    const settings = { ...this.settings, [id]: { ...this.settings[String(id)]!, ...changes } };
    this.applySettings(settings);
    this.model.set("settings", settings);
    clearTimeout(this.keepSettings);
    this.keepSettings = setTimeout(() => this.model.save_changes(), KEEP_MS);
  }
  private keepSettings: ReturnType<typeof setTimeout> | undefined;

  private applySettings(settings: Settings): void {
    this.settings = settings;
    this.refresh();
  }

  private applyIndex(index: Record<string, number>): void {
    this.index = index;
    this.refresh();
  }

  private refresh(): void {
    for (const layer of this.layers) {
      const own = this.settings[String(layer.scene.id)];
      if (own) layer.apply(own, this.index);
    }
    const base = this.settings[String(this.frame.base.id)]!;
    this.small?.apply({ ...base, opacity: 1, visible: true }, this.index);
    this.panel.apply(this.settings, this.index);
  }

  /** Take over a view that Python or a linked viewer has set. */
  private follow(): void {
    if (this.storing) return;
    const center = this.model.get("center") as [number, number] | null;
    const zoom = this.model.get("zoom") as number | null;
    if (center === null || zoom === null) {
      this.fit();
      return;
    }
    const world = this.frame.toWorld(center[0], center[1]);
    const resolution = this.frame.info.aspect[1] / zoom;
    const rotation = ((this.model.get("rotation") as number) * Math.PI) / 180;
    const now = this.view.getCenter() ?? [0, 0];
    const here = this.view.getResolution() ?? 1;
    const near = Math.hypot(now[0]! - world[0], now[1]! - world[1]) < here / 2;
    if (near && Math.abs(here / resolution - 1) < 1e-3 && Math.abs(this.view.getRotation() - rotation) < 1e-3) return;
    // What was just told is not told back: a linked viewer that is being dragged would jump to where it was.
    this.following = true;
    this.view.cancelAnimations();
    this.view.setCenter(world);
    this.view.setResolution(resolution);
    this.view.setRotation(rotation);
    this.following = false;
  }

  private moved(): void {
    this.fitted = false;
    clearTimeout(this.keep);
    if (!this.following) this.keep = setTimeout(() => this.store(), KEEP_MS);
    this.measure();
  }

  /** Tell Python where the view is. */
  private store(): void {
    clearTimeout(this.keep);
    this.keep = undefined;
    const center = this.view.getCenter();
    const resolution = this.view.getResolution();
    const size = this.map.getSize();
    if (!center || !resolution || !size) return;
    // Each set tells every listener at once, and the first ones would see half of the new view.
    this.storing = true;
    this.model.set("center", this.frame.toPixels(center).map((v) => Math.round(v * 100) / 100));
    this.model.set("zoom", this.frame.info.aspect[1] / resolution);
    this.model.set("size", [...size].reverse());
    this.storing = false;
    this.model.set("rotation", (this.view.getRotation() * 180) / Math.PI);
    this.model.save_changes();
  }

  private eachRaster(act: (layer: RasterLayer, resolution: number, extent: Extent) => void): void {
    const size = this.map.getSize();
    const resolution = this.view.getResolution();
    if (!size || !resolution) return;
    const extent = this.view.calculateExtent(size);
    for (const layer of this.rasters) act(layer, resolution, extent);
  }

  /** A view without a height of its own fills its place. */
  private setHeight(): void {
    const height = this.model.get("height") as number | null;
    this.root.style.height = height === null ? "100%" : `${height}px`;
  }

  private resized(): void {
    // The new size may itself shift the view.
    const fitted = this.fitted;
    if (!this.measured && this.root.clientWidth) {
      this.measured = true;
      this.showPanel();
    }
    this.map.updateSize();
    const [width = 0, height = 0] = this.map.getSize() ?? [];
    if (!width || !height) return;
    if (!fitted) return;
    if (this.placed) this.follow();
    else this.fit();
    this.measure();
  }

  /** Redraw the scale bar and the magnification. */
  private measure(): void {
    const resolution = this.view.getResolution();
    if (!resolution) return;
    const spacing = this.frame.spacing * resolution;
    const { unit } = this.frame.info;
    const length = niceLength(BAR_PX * spacing);
    this.bar.style.width = `${length / spacing}px`;
    this.barLabel.textContent = sayLength(length, unit, this.frame.base.metre);
    const zoom = this.frame.info.aspect[1] / resolution;
    // By convention a microscope's 40× is 0.25 µm for a pixel.
    const metres = this.frame.base.metre ? spacing * this.frame.base.metre : 0;
    const objective = metres && metres < 2e-4 ? ` · ${tidy(1e-5 / metres, 2)}×` : "";
    this.magnification.textContent = `${tidy(zoom * 100, 3)} %${objective}`;
  }

  private point(event: MapBrowserEvent): void {
    const [y, x] = this.frame.toPixels(event.coordinate);
    const { spacing, unit } = this.frame.info;
    const { metre } = this.frame.base;
    const pixels = `y ${grouped(Math.floor(y))}  x ${grouped(Math.floor(x))} px`;
    const lengths = metre
      ? ` · ${sayLength(y * spacing[0], unit, metre, 4)}, ${sayLength(x * spacing[1], unit, metre, 4)}`
      : "";
    const { traces } = this.frame.base;
    if (traces) {
      const time = (this.index.t ?? 0) * traces.page + (x - traces.start) * spacing[1];
      this.place.textContent = x < traces.start ? "" : `${tidy(time, 4)} ${unit}`;
    } else {
      this.place.textContent = pixels + lengths;
      this.probe.read(event.pixel, [y, x], this.index);
    }
    if (event.dragging) this.probe.leave();
    if (this.annotator?.busy) return;
    if (event.dragging) {
      this.hover(null);
      return;
    }
    const hits = this.shapes.reverse().map((layer) => ({ layer, hit: layer.hit(event.coordinate, this.view.getResolution() ?? 1) }));
    this.hover(hits.find(({ hit }) => hit) ?? null);
  }

  private hover(found: { layer: Annotated; hit: Hit | null } | null): void {
    for (const layer of this.shapes) layer.mark(layer === found?.layer ? found.hit : null);
    if (!found?.hit) {
      this.tipBeside([]);
      return;
    }
    const { name, title, score, area } = found.hit;
    const lines: HTMLElement[] = [make("strong", {}, name)];
    if (title && title !== name) lines.push(make("div", {}, title));
    if (score !== undefined) lines.push(make("div", {}, `score ${tidy(score, 3)}`));
    if (area) lines.push(make("div", {}, this.measures.area(area * this.frame.info.aspect[0] * this.frame.info.aspect[1])));
    this.tipBeside(lines);
  }

  /** Say something beside the pointer; nothing where there are no lines. */
  private tipBeside(lines: HTMLElement[]): void {
    this.tip.hidden = !lines.length;
    if (!lines.length) return;
    this.tip.replaceChildren(...lines);
    const pixel = this.pointerAt;
    const [width = 0, height = 0] = this.map.getSize() ?? [];
    const box = this.tip.getBoundingClientRect();
    this.tip.style.left = `${Math.min(pixel[0]! + 14, width - box.width - 6)}px`;
    this.tip.style.top = `${Math.min(pixel[1]! + 14, height - box.height - 6)}px`;
  }

  /** Tell the person at the screen of a fault. */
  say(message: string): void {
    this.alertText.textContent = message;
    this.alert.hidden = false;
  }
}

/** A time in ms; none for those who asked their system for less motion. */
function glide(duration: number): number {
  return matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : duration;
}

function told(scene: LayerScene[]): Record<number, string> {
  return Object.fromEntries(scene.map((layer) => [layer.id, JSON.stringify(layer)]));
}

/** Whether a layer can show another thing as it stands. */
function fits(one: LayerScene, other: LayerScene): boolean {
  const [a, b] = [one, other].map(({ kind, scale, offset, info, classes, document }) =>
    // The classes of a document come and go.
    JSON.stringify([kind, scale, offset, info, document ? document.path : classes.length]),
  );
  return a === b;
}
