/** Lengths and areas in words, as far as the size of a pixel is known. */
import type Geometry from "ol/geom/Geometry.js";
import type LineString from "ol/geom/LineString.js";
import type Polygon from "ol/geom/Polygon.js";
import { type Frame, sayLength, tidy } from "./frame.ts";

export class Measures {
  constructor(private readonly frame: Frame) {}

  /** A length of the frame. */
  length(value: number): string {
    return sayLength(value * this.frame.spacing, this.frame.info.unit, this.frame.base.metre);
  }

  /** An area of the frame. */
  area(value: number): string {
    const { unit } = this.frame.info;
    const { metre } = this.frame.base;
    const physical = value * this.frame.spacing ** 2;
    if (!metre) return `${tidy(physical, 4)} ${unit}²`;
    const square = physical * metre * metre;
    return square >= 1e-8 ? `${tidy(square / 1e-6, 3)} mm²` : `${tidy(square / 1e-12, 3)} µm²`;
  }

  /** Area and rim, or length, of a geometry of the frame. */
  of(geometry: Geometry): { name: string; text: string }[] {
    const kind = geometry.getType();
    if (kind.endsWith("Polygon")) {
      return [
        { name: "Area", text: this.area((geometry as Polygon).getArea()) },
        { name: "Perimeter", text: this.length(rim(geometry as Polygon)) },
      ];
    }
    if (kind === "LineString") return [{ name: "Length", text: this.length((geometry as LineString).getLength()) }];
    return [];
  }
}

function rim(geometry: Polygon): number {
  const rings = (geometry.getType() === "MultiPolygon" ? geometry.getCoordinates().flat() : geometry.getCoordinates()) as number[][][];
  let sum = 0;
  for (const ring of rings) {
    for (let i = 1; i < ring.length; i++) sum += Math.hypot(ring[i]![0]! - ring[i - 1]![0]!, ring[i]![1]! - ring[i - 1]![1]!);
  }
  return sum;
}
