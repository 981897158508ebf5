export type Rgb = [number, number, number];

/** What anywidget gives a front end: synced traits and custom messages. */
export interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, callback: (...args: never[]) => void): void;
  off(event: string, callback: (...args: never[]) => void): void;
}

export interface DocumentClass {
  name: string;
  color: Rgb;
  /** The key that chooses it. */
  shortcut?: string | null;
}

/** What can be drawn on, as it was when the shapes of the layer were packed. */
export interface DocumentScene {
  /** Why nothing can be drawn; null where it can. */
  readOnly: string | null;
  classes: DocumentClass[];
  /** Who draws here. */
  author: string;
  revision: number;
  path: string;
  can?: string[];
}

export interface LayerClass {
  name: string;
  color: Rgb;
  count?: number;
}

/** The tile pyramid of a raster, as TileSource.info() tells it. */
export interface TileInfo {
  shape: [number, number];
  aspect: [number, number];
  tile: number;
  /** Rows and columns of a tile on each level; `tile` on all where it is absent. */
  tiles?: [number, number][];
  resolutions: number[];
  spacing: [number, number];
  unit: string;
  axes: Record<string, number>;
  channels: string[];
  opaque: boolean;
}

/** The file that a layer shows exactly, with its size and time of change: text, for nanoseconds exceed a number here. */
export interface LayerSource {
  path: string;
  stamp: [string, string] | null;
  /** The slide that it lies on, in whose pixels it is wanted. */
  on?: string;
  /** Whether it is to be drawn on; it need not exist yet. */
  document?: boolean;
}

/** One thing in the viewer; scale and offset place it in level-0 pixels of the base, along y and x. */
export interface LayerScene {
  id: number;
  name: string;
  base: boolean;
  kind: "image" | "heatmap" | "mask" | "labels" | "shapes";
  scale: [number, number];
  offset: [number, number];
  classes: LayerClass[];
  count?: number;
  info?: TileInfo;
  maps?: Record<string, Rgb[]>;
  metre?: number | null;
  source?: LayerSource | null;
  /** Counts how often the thing in this layer was replaced. */
  revision?: number;
  /** Values at the ends of the display range that was found in the data. */
  display?: [number, number];
  /** Of pages of a signal: where its time axis begins, in pixels, and how long a page is. */
  traces?: { start: number; page: number } | null;
  /** As DICOM names it: "CT" has windows that everybody knows. */
  modality?: string;
  /** Of shapes that can be drawn and changed. */
  document?: DocumentScene;
}

/** Whether the stored pixels are the colours that are shown, so that there is no contrast to choose. */
export function isPlain({ kind, classes, display = [0, 255] }: LayerScene): boolean {
  return kind === "image" && classes.map((c) => c.name).join() === "red,green,blue" && display.join() === "0,255";
}

export interface LayerSettings {
  visible: boolean;
  opacity: number;
  hidden: number[];
  channel?: number | null;
  colors?: string;
  threshold?: number;
  low?: number;
  high?: number;
  class_colors?: Rgb[];
}

export type Settings = Record<string, LayerSettings>;
