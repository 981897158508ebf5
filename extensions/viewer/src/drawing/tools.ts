/** The tools: what each draws with, how it looks meanwhile, and which key takes it up. */
import Draw, { createBox, type Options } from "ol/interaction/Draw.js";
import Polygon from "ol/geom/Polygon.js";
import type SimpleGeometry from "ol/geom/SimpleGeometry.js";
import type MapBrowserEvent from "ol/MapBrowserEvent.js";

export type ToolName =
  | "pan" | "select" | "edit" | "point" | "line" | "rectangle" | "ellipse" | "polygon" | "freehand"
  | "brush" | "eraser" | "wand" | "split" | "hole";

export interface Tool {
  name: ToolName;
  label: string;
  key: string;
  /** What it does, for the help and for the bar. */
  does: string;
  /** What is drawn with it; tools without do not draw. */
  draw?: Partial<Options> & Pick<Options, "type">;
  /** Whether a shape of its own comes of it, or Python makes something of its path. */
  makes?: "shape" | "change";
  /** Whether it follows neighbours when that is wanted. */
  snaps?: boolean;
}

const shift = (event: MapBrowserEvent): boolean => (event.originalEvent as MouseEvent).shiftKey;
const freely = (event: MapBrowserEvent): boolean => !shift(event);
const MOST_SIDES = 96;

export const TOOLS: Tool[] = [
  { name: "pan", label: "Move", key: "m", does: "Move the view" },
  { name: "select", label: "Select", key: "s", does: "Select: click, Shift click for several, drag a rectangle" },
  { name: "edit", label: "Edit vertices", key: "v", does: "Edit vertices: drag, click a side to add, Alt click to remove" },
  { name: "point", label: "Point", key: ".", does: "Point", draw: { type: "Point" }, makes: "shape" },
  { name: "line", label: "Line", key: "l", does: "Line: drag, or Shift click its corners", draw: { type: "LineString", freehandCondition: freely }, makes: "shape", snaps: true },
  { name: "rectangle", label: "Rectangle", key: "r", does: "Rectangle: drag", draw: { type: "Circle", freehand: true, geometryFunction: createBox() }, makes: "shape", snaps: true },
  { name: "ellipse", label: "Ellipse", key: "o", does: "Ellipse: drag", draw: { type: "Circle", freehand: true, geometryFunction: ellipse as never }, makes: "shape" },
  { name: "polygon", label: "Polygon", key: "p", does: "Polygon: click corners, double click or Enter ends; Shift drag draws freely", draw: { type: "Polygon" }, makes: "shape", snaps: true },
  { name: "freehand", label: "Freehand", key: "d", does: "Draw freely: drag", draw: { type: "Polygon", freehand: true }, makes: "shape", snaps: true },
  { name: "brush", label: "Brush", key: "b", does: "Brush: paints new objects, or on at the selected one; Alt erases", draw: { type: "LineString", freehand: true }, makes: "change" },
  { name: "eraser", label: "Eraser", key: "e", does: "Eraser", draw: { type: "LineString", freehand: true }, makes: "change" },
  { name: "wand", label: "Magic wand", key: "w", does: "Magic wand: click on an area of one colour", draw: { type: "Point" }, makes: "change" },
  { name: "hole", label: "Hole", key: "h", does: "Cut a hole: drag its rim, or Shift click its corners", draw: { type: "Polygon", freehandCondition: freely }, makes: "change", snaps: true },
  { name: "split", label: "Split", key: "x", does: "Split: drag a line across, or Shift click its corners", draw: { type: "LineString", freehandCondition: freely }, makes: "change", snaps: true },
];

export function toolOf(name: string): Tool {
  return TOOLS.find((tool) => tool.name === name) ?? TOOLS[0]!;
}

/** Make the interaction that draws with a tool. */
export function makeDraw(tool: Tool, options: Partial<Options>): Draw {
  return new Draw({ ...tool.draw!, stopClick: true, clickTolerance: 4, ...options });
}

/** The ellipse in the box between two corners; nearly as many sides as a circle has. */
function ellipse(corners: number[][], geometry?: SimpleGeometry): SimpleGeometry {
  const [start, end] = [corners[0]!, corners.at(-1)!];
  const center = [(start[0]! + end[0]!) / 2, (start[1]! + end[1]!) / 2];
  const radii = [Math.abs(end[0]! - start[0]!) / 2, Math.abs(end[1]! - start[1]!) / 2];
  const ring = Array.from({ length: MOST_SIDES + 1 }, (_, side) => {
    const angle = (2 * Math.PI * (side % MOST_SIDES)) / MOST_SIDES;
    return [center[0]! + radii[0]! * Math.cos(angle), center[1]! + radii[1]! * Math.sin(angle)];
  });
  if (!geometry) return new Polygon([ring]);
  (geometry as Polygon).setCoordinates([ring]);
  return geometry;
}
