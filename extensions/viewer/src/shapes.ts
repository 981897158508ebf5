/** Annotations as vectors in the colours of their classes. */
import GeoJSON from "ol/format/GeoJSON.js";
import VectorLayer from "ol/layer/Vector.js";
import VectorSource from "ol/source/Vector.js";
import CircleStyle from "ol/style/Circle.js";
import Fill from "ol/style/Fill.js";
import Stroke from "ol/style/Stroke.js";
import Style from "ol/style/Style.js";
import type Feature from "ol/Feature.js";
import type { FeatureLike } from "ol/Feature.js";
import type { Frame } from "./frame.ts";
import type { Transport } from "./transport.ts";
import type { LayerScene, LayerSettings, Rgb } from "./types.ts";

const MANY = 3000;

export class ShapesLayer {
  readonly layer: VectorLayer<VectorSource>;
  private readonly source = new VectorSource();
  private readonly styles: Style[][];
  private readonly marked: Style[][];
  private settings: LayerSettings;
  private hovered: FeatureLike | null = null;
  private readonly closed = new AbortController();

  constructor(
    readonly scene: LayerScene,
    private readonly frame: Frame,
    private readonly transport: Transport,
    settings: LayerSettings,
    private readonly fail: (message: string) => void,
  ) {
    this.settings = settings;
    const thin = (scene.count ?? 0) > MANY;
    this.styles = scene.classes.map((c) => paint(c.color, thin ? 1.25 : 2, 0.12, !thin));
    this.marked = scene.classes.map((c) => paint(c.color, thin ? 2.5 : 3.5, 0.18, true));
    this.layer = new VectorLayer({
      source: this.source,
      updateWhileInteracting: !thin,
      updateWhileAnimating: !thin,
      style: (feature) => {
        const label = feature.get("label") as number;
        if (this.settings.hidden.includes(label)) return undefined;
        return (feature === this.hovered ? this.marked : this.styles)[label];
      },
    });
    this.apply(settings);
    void this.fetch();
  }

  apply(settings: LayerSettings): void {
    const restyled = String(settings.hidden) !== String(this.settings.hidden);
    this.settings = settings;
    this.layer.setVisible(settings.visible);
    this.layer.setOpacity(settings.opacity);
    if (restyled) this.layer.changed();
  }

  /** Draw one feature stronger than the others. */
  mark(feature: FeatureLike | null): void {
    if (feature === this.hovered) return;
    this.hovered = feature;
    this.layer.changed();
  }

  close(): void {
    this.closed.abort();
  }

  get size(): number {
    return this.source.getFeatures().length;
  }

  private async fetch(): Promise<void> {
    try {
      const { head, buffers } = await this.transport.shapes({ layer: this.scene.id }, this.closed.signal);
      const features = new GeoJSON().readFeatures(JSON.parse(new TextDecoder().decode(buffers[0]))) as Feature[];
      const { scale, offset } = this.scene;
      const { toWorld } = this.frame;
      for (const feature of features) {
        feature.getGeometry()?.applyTransform((from: number[], to: number[] = from, stride = 2) => {
          for (let i = 0; i < from.length; i += stride) {
            const world = toWorld.call(this.frame, from[i + 1]! * scale[0] + offset[0], from[i]! * scale[1] + offset[1]);
            to[i] = world[0];
            to[i + 1] = world[1];
          }
          return to;
        });
      }
      this.source.addFeatures(features);
      const missing = (this.scene.count ?? 0) - (head.shown as number);
      if (missing > 0) this.fail(`${this.scene.name}: the ${head.shown} largest shapes are shown, ${missing} are not.`);
    } catch (error) {
      if (!this.closed.signal.aborted) this.fail(`${this.scene.name}: ${(error as Error).message}`);
    }
  }
}

/** An outline in the colour of its class; a pale casing keeps it visible on a heat map of the same colour. */
function paint(color: Rgb, width: number, filled: number, cased: boolean): Style[] {
  const stroke = new Stroke({ color: `rgb(${color})`, width });
  const fill = new Fill({ color: `rgba(${color},${filled})` });
  const dot = new CircleStyle({
    radius: 3 + width, fill: new Fill({ color: `rgb(${color})` }), stroke: new Stroke({ color: "#fff", width: 1.5 }),
  });
  const casing = new Style({ stroke: new Stroke({ color: "rgba(255,255,255,.75)", width: width + 2 }) });
  return [...(cased ? [casing] : []), new Style({ stroke, fill, image: dot })];
}
