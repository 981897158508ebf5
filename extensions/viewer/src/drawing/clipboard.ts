/** Objects on the clipboard: GeoJSON as QuPath writes it, with the size of a pixel, so that they fit another scan. */
import type { Frame } from "../frame.ts";
import type { GeoFeature, GeoGeometry } from "./features.ts";

interface Copied {
  type: "FeatureCollection";
  features: GeoFeature[];
  dhlab?: { view: string; metres: [number, number] | null };
}

/** Length of a level-0 pixel along y and x in metres, where it is known. */
function metresOf({ info, base }: Frame): [number, number] | null {
  return base.metre ? [info.spacing[0] * base.metre, info.spacing[1] * base.metre] : null;
}

export function write(features: GeoFeature[], frame: Frame, view: string): string {
  const copied: Copied = { type: "FeatureCollection", features, dhlab: { view, metres: metresOf(frame) } };
  return JSON.stringify(copied);
}

/** Read objects of any GeoJSON, at the same physical place; `own` says whether they come from this very view. */
export function read(text: string, frame: Frame, view: string): { features: GeoFeature[]; own: boolean } {
  let copied: Copied;
  try {
    const found = JSON.parse(text) as Copied | GeoFeature;
    copied = found.type === "Feature" ? { type: "FeatureCollection", features: [found] } : found;
  } catch {
    return { features: [], own: false };
  }
  if (copied?.type !== "FeatureCollection" || !Array.isArray(copied.features)) return { features: [], own: false };
  const [from, to] = [copied.dhlab?.metres, metresOf(frame)];
  const scale: [number, number] = from && to ? [from[1] / to[1], from[0] / to[0]] : [1, 1];
  const features = copied.features.filter((one) => one?.geometry).map((one) => ({ ...one, geometry: scaled(one.geometry, scale) }));
  return { features, own: copied.dhlab?.view === view };
}

/** A geometry moved by a distance in level-0 pixels. */
export function moved(geometry: GeoGeometry, [x, y]: [number, number]): GeoGeometry {
  return eachPlace(geometry, (place) => [place[0]! + x, place[1]! + y]);
}

function scaled(geometry: GeoGeometry, [x, y]: [number, number]): GeoGeometry {
  return x === 1 && y === 1 ? geometry : eachPlace(geometry, (place) => [place[0]! * x, place[1]! * y]);
}

function eachPlace(geometry: GeoGeometry, act: (place: number[]) => number[]): GeoGeometry {
  const walk = (value: unknown): unknown => {
    if (!Array.isArray(value)) return value;
    return typeof value[0] === "number" ? act(value as number[]) : value.map(walk);
  };
  if (geometry.geometries) return { ...geometry, geometries: geometry.geometries.map((one) => eachPlace(one, act)) };
  return { ...geometry, coordinates: walk(geometry.coordinates) };
}
