/** Between GeoJSON in level-0 pixels of a layer and geometries of the frame. */
import GeoJSON from "ol/format/GeoJSON.js";
import type Geometry from "ol/geom/Geometry.js";
import type { Frame } from "../frame.ts";
import type { LayerScene } from "../types.ts";
import type { GeoGeometry } from "./features.ts";

const FORMAT = new GeoJSON();
const DECIMALS = 100;

export class Placement {
  /** Where the first pixel of the layer lies. */
  readonly origin: [number, number];
  /** Size of its level-0 pixel along x and y, in the frame. */
  readonly unit: [number, number];

  constructor(frame: Frame, scene: LayerScene) {
    this.origin = frame.toWorld(scene.offset[0], scene.offset[1]);
    this.unit = [scene.scale[1] * frame.info.aspect[1], scene.scale[0] * frame.info.aspect[0]];
  }

  geometry(geometry: GeoGeometry): Geometry {
    const found = FORMAT.readGeometry(geometry)!;
    found.applyTransform((flat: number[], output: number[] = flat, stride = 2) => {
      for (let i = 0; i < flat.length; i += stride) {
        output[i] = this.origin[0] + flat[i]! * this.unit[0];
        output[i + 1] = this.origin[1] - flat[i + 1]! * this.unit[1];
      }
      return output;
    });
    return found;
  }

  geojson(geometry: Geometry): GeoGeometry {
    const found = geometry.clone();
    found.applyTransform((flat: number[], output: number[] = flat, stride = 2) => {
      for (let i = 0; i < flat.length; i += stride) {
        [output[i], output[i + 1]] = this.pixels([flat[i]!, flat[i + 1]!]) as [number, number];
      }
      return output;
    });
    return FORMAT.writeGeometryObject(found) as GeoGeometry;
  }

  /** A place of the frame in level-0 pixels (x, y). */
  pixels(coordinate: number[]): [number, number] {
    const [x, y] = [(coordinate[0]! - this.origin[0]) / this.unit[0], (this.origin[1] - coordinate[1]!) / this.unit[1]];
    return [Math.round(x * DECIMALS) / DECIMALS, Math.round(y * DECIMALS) / DECIMALS];
  }
}
