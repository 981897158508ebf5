/** How objects look that are drawn, chosen or changed: in the colour of their class, dashed where they are doubtful. */
import type { FeatureLike } from "ol/Feature.js";
import type Feature from "ol/Feature.js";
import type Geometry from "ol/geom/Geometry.js";
import MultiPoint from "ol/geom/MultiPoint.js";
import type SimpleGeometry from "ol/geom/SimpleGeometry.js";
import CircleStyle from "ol/style/Circle.js";
import Fill from "ol/style/Fill.js";
import Stroke from "ol/style/Stroke.js";
import Style, { type StyleFunction } from "ol/style/Style.js";
import type { Rgb } from "../types.ts";
import type { Review } from "./features.ts";
import { reviewed } from "./reviewed.ts";

const CASING = "rgba(255,255,255,0.75)";
const UNSAVED: Rgb = [211, 47, 47];
const MOST_VERTICES = 5000;

export interface Looks {
  color: Rgb;
  review: Review | null;
  selected: boolean;
  /** Not saved, and not on its way either. */
  failed: boolean;
  /** Its vertices are shown. */
  vertices: boolean;
  /** It is a few pixels large: a pale rim would be all that is seen. */
  tiny: boolean;
}

const known = new Map<string, Style[]>();

/** The style of an object; features of the same looks share it. */
export function styleOf(looks: Looks): Style[] {
  const key = JSON.stringify(looks);
  let styles = known.get(key);
  if (!styles) known.set(key, (styles = makeStyles(looks)));
  return styles;
}

function makeStyles({ color, review, selected, failed, vertices, tiny }: Looks): Style[] {
  const line = failed ? UNSAVED : color;
  if (tiny) return [new Style({ fill: new Fill({ color: `rgb(${line})` }), ...(selected && { stroke: new Stroke({ color: `rgb(${line})`, width: 2 }) }) })];
  const width = selected ? 3.5 : 2;
  const { fill, line: opaque, dash } = reviewed(review);
  const lineDash = failed ? [3, 5] : dash;
  const styles = [
    new Style({ stroke: new Stroke({ color: CASING, width: width + 2 }) }),
    new Style({
      fill: new Fill({ color: `rgba(${color},${selected ? fill + 0.1 : fill})` }),
      stroke: new Stroke({ color: `rgba(${line},${opaque})`, width, ...(lineDash.length && { lineDash }) }),
      image: new CircleStyle({ radius: selected ? 7 : 5, fill: new Fill({ color: `rgb(${line})` }), stroke: new Stroke({ color: "#fff", width: 1.5 }) }),
    }),
  ];
  if (vertices) {
    styles.push(new Style({
      geometry: (feature) => corners(feature as Feature<Geometry>),
      image: new CircleStyle({ radius: 4, fill: new Fill({ color: "#fff" }), stroke: new Stroke({ color: `rgb(${color})`, width: 2 }) }),
      zIndex: 1,
    }));
  }
  return styles;
}

function corners(feature: Feature<Geometry>): Geometry | undefined {
  const geometry = feature.getGeometry() as SimpleGeometry | undefined;
  const flat = geometry?.getFlatCoordinates?.() ?? [];
  const stride = geometry?.getStride?.() ?? 2;
  return flat.length && flat.length / stride <= MOST_VERTICES ? new MultiPoint(flat, "XY") : undefined;
}

/** What is being drawn, in a colour. */
export function sketchStyle(color: Rgb): Style[] {
  return [
    new Style({ stroke: new Stroke({ color: CASING, width: 4 }) }),
    new Style({
      fill: new Fill({ color: `rgba(${color},0.14)` }),
      stroke: new Stroke({ color: `rgb(${color})`, width: 2 }),
      image: new CircleStyle({ radius: 4, fill: new Fill({ color: `rgb(${color})` }), stroke: new Stroke({ color: "#fff", width: 1.5 }) }),
    }),
  ];
}

/** A stroke as wide as a brush; its cursor is a circle. `radius` is in units of the frame. */
export function brushStyle(color: Rgb | null, radius: (resolution: number) => number): StyleFunction {
  const paint = color ? `rgba(${color},0.45)` : "rgba(255,255,255,0.6)";
  const rim = color ? `rgb(${color})` : "#444";
  return (feature: FeatureLike, resolution: number) => {
    const pixels = radius(resolution);
    if (feature.getGeometry()?.getType() === "Point") {
      return [
        new Style({ image: new CircleStyle({ radius: pixels, stroke: new Stroke({ color: CASING, width: 3.5 }) }) }),
        new Style({ image: new CircleStyle({ radius: pixels, stroke: new Stroke({ color: rim, width: 1.5, ...(!color && { lineDash: [3, 3] }) }) }) }),
      ];
    }
    return new Style({ stroke: new Stroke({ color: paint, width: 2 * pixels, lineCap: "round", lineJoin: "round" }) });
  };
}

/** A line that cuts. */
export function cutStyle(): Style[] {
  return [
    new Style({ stroke: new Stroke({ color: CASING, width: 4 }), fill: new Fill({ color: "rgba(255,255,255,0.35)" }) }),
    new Style({
      stroke: new Stroke({ color: "#222", width: 1.5, lineDash: [6, 4] }),
      image: new CircleStyle({ radius: 4, fill: new Fill({ color: "#222" }), stroke: new Stroke({ color: "#fff", width: 1.5 }) }),
    }),
  ];
}

/** A place where something is being made. */
export function waitStyle(color: Rgb): Style[] {
  return [new Style({ image: new CircleStyle({ radius: 9, stroke: new Stroke({ color: `rgb(${color})`, width: 3, lineDash: [8, 6] }) }) })];
}
