/**
 * The one frame that every layer lies in. Its unit is a square pixel of the base; its y axis points up, as
 * OpenLayers wants it, so every y changes its sign here and nowhere else.
 */
import Projection from "ol/proj/Projection.js";
import type { Extent } from "ol/extent.js";
import type { LayerScene, TileInfo } from "./types.ts";

export class Frame {
  readonly info: TileInfo;
  readonly extent: Extent;
  readonly projection: Projection;

  constructor(readonly base: LayerScene) {
    this.info = base.info!;
    const [height, width] = this.info.shape;
    this.extent = [0, -height, width, 0];
    this.projection = new Projection({ code: `dhlab-${width}-${height}`, units: "pixels", extent: this.extent });
  }

  /** From level-0 pixels (y, x) of the base to the frame. */
  toWorld(y: number, x: number): [number, number] {
    return [x * this.info.aspect[1], -y * this.info.aspect[0]];
  }

  /** From the frame to level-0 pixels (y, x) of the base. */
  toPixels(world: number[]): [number, number] {
    return [-world[1]! / this.info.aspect[0], world[0]! / this.info.aspect[1]];
  }

  /** Physical size of a unit of the frame, in the base's unit. */
  get spacing(): number {
    return this.info.spacing[1] / this.info.aspect[1];
  }

  /** Where a layer's first pixel lies, and how large one of its square pixels is, in the frame. */
  place(layer: LayerScene): { origin: [number, number]; pixel: number } {
    const info = layer.info ?? this.info;
    return {
      origin: this.toWorld(layer.offset[0], layer.offset[1]),
      pixel: (layer.scale[1] * this.info.aspect[1]) / info.aspect[1],
    };
  }
}

const UNITS: [string, number][] = [["m", 1], ["cm", 1e-2], ["mm", 1e-3], ["µm", 1e-6], ["nm", 1e-9]];

/** A length in words: the unit that leaves a number from 1 to 1000. */
export function sayLength(value: number, unit: string, metre: number | null | undefined, digits = 3): string {
  if (!metre) return `${tidy(value, digits)} ${unit}`;
  const metres = value * metre;
  const [name, factor] =
    UNITS.filter(([n]) => n === "mm" || n === "µm" || n === "nm").find(([, f]) => Math.abs(metres) >= f * 0.9999) ??
    UNITS[3]!;
  return `${tidy(metres / factor, digits)} ${name}`;
}

export function tidy(value: number, digits = 3): string {
  const rounded = Number(value.toPrecision(digits));
  return Math.abs(rounded) >= 1e6 ? rounded.toExponential(1) : grouped(rounded);
}

/** Thousands apart by a thin space, as 12 345. */
export function grouped(value: number): string {
  const [whole = "", part] = String(value).split(".");
  const spaced = whole.replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
  return part ? `${spaced}.${part}` : spaced;
}

/** The largest of 1, 2, 5 × 10ⁿ that does not exceed a length. */
export function niceLength(wanted: number): number {
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [5, 2, 1].map((f) => f * power).find((length) => length <= wanted * (1 + 1e-9)) ?? power;
}
