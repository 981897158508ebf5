/** A scan as a tiled layer: the tiles in view first, their neighbours while nothing else is waited for. */
import TileLayer from "ol/layer/Tile.js";
import ImageTileSource from "ol/source/ImageTile.js";
import TileGrid from "ol/tilegrid/TileGrid.js";
import TileState from "ol/TileState.js";
import type { Extent } from "ol/extent.js";
import type { TileSourceEvent } from "ol/source/Tile.js";
import TileRange from "ol/TileRange.js";
import { getCenter, getSize, intersects } from "ol/extent.js";
import type { Frame } from "./frame.ts";
import type { TileRequest, Transport } from "./transport.ts";
import { isPlain, type LayerScene, type LayerSettings } from "./types.ts";

const DECODED_BYTES = 128 << 20;
const MOST_AHEAD = 64;
const AHEAD_IN_FLIGHT = 3;

interface Place {
  z: number;
  extent: Extent;
}

export class RasterLayer {
  readonly layer: TileLayer<ImageTileSource>;
  private readonly grid: TileGrid;
  private readonly source: ImageTileSource;
  private readonly inFlight = new Map<AbortController, Place>();
  private ahead = new AbortController();
  private seen: { z: number; extent: Extent } | undefined;
  private settings: LayerSettings;
  private index: Record<string, number>;

  constructor(
    public scene: LayerScene,
    frame: Frame,
    private readonly transport: Transport,
    first: { settings: LayerSettings; index: Record<string, number> },
    private readonly fail: (message: string) => void,
  ) {
    this.settings = first.settings;
    this.index = first.index;
    const info = scene.info!;
    const { origin, pixel } = frame.place(scene);
    const [height, width] = info.shape;
    const extent = [origin[0], origin[1] - height * pixel, origin[0] + width * pixel, origin[1]];
    const resolutions = info.resolutions.map((r) => r * pixel).reverse();
    const sides = info.tiles ?? info.resolutions.map((): [number, number] => [info.tile, info.tile]);
    const tileSizes = sides.map(([rows, columns]) => [columns, rows]).reverse();
    this.grid = new TileGrid({ extent, origin, resolutions, tileSizes });
    const count = info.resolutions.length;
    this.source = new ImageTileSource({
      projection: frame.projection,
      tileGrid: this.grid,
      wrapX: false,
      transition: 0,
      interpolate: scene.kind === "image" || scene.kind === "heatmap",
      // Sharp rather than soft: the coarser level only where it is nearly fine enough for the screen.
      zDirection: (value: number, high: number) => (high * window.devicePixelRatio <= value * 1.25 ? 1 : -1),
      loader: (z: number, x: number, y: number) => this.load(this.request(z, x, y, count), z),
    } as ConstructorParameters<typeof ImageTileSource>[0]);
    this.source.on("tileloaderror", this.reopen as never);
    // Decoded tiles are large; those that go are decoded again in a few milliseconds.
    const cacheSize = Math.ceil(DECODED_BYTES / Math.max(...sides.map(([rows, columns]) => 4 * rows * columns)));
    this.layer = new TileLayer({ source: this.source, extent, cacheSize });
    this.apply(first.settings, first.index);
  }

  /** Take over settings; what changes the pixels asks for new tiles, the old ones stay until they are there. */
  apply(settings: LayerSettings, index: Record<string, number>): void {
    this.settings = settings;
    this.index = index;
    this.layer.setVisible(settings.visible);
    this.layer.setOpacity(settings.opacity);
    const key = JSON.stringify([this.style(), index, this.scene.revision]);
    const source = this.source as unknown as { getKey(): string; setKey(key: string): void };
    if (source.getKey() === key) return;
    for (const controller of this.inFlight.keys()) controller.abort();
    source.setKey(key);
  }

  /** Show another thing on the same grid; its old tiles stay until the new ones are there. */
  renew(scene: LayerScene): void {
    this.scene = scene;
    this.apply(this.settings, this.index);
  }

  /** Withdraw the tiles that the present view no longer shows. */
  prune(resolution: number, extent: Extent): void {
    const z = this.grid.getZForResolution(resolution, this.source.zDirection);
    for (const [controller, place] of this.inFlight) {
      const shown = this.settings.visible && place.z <= z && place.z >= z - 1 && intersects(place.extent, extent);
      if (!shown) controller.abort();
    }
  }

  /** Fetch what the next step of the hand is likely to show: the ring of tiles about the view, and its middle closer. */
  async prefetch(resolution: number, extent: Extent): Promise<void> {
    this.rest();
    if (!this.settings.visible) return;
    const { signal } = this.ahead;
    const count = this.scene.info!.resolutions.length;
    const places = this.neighbours(this.grid.getZForResolution(resolution, this.source.zDirection), extent);
    const work = async (): Promise<void> => {
      for (let place = places.shift(); place && !signal.aborted; place = places.shift()) {
        // What fails here is told when it comes into view.
        await this.transport.tile(this.request(...place, count), signal).catch(() => undefined);
      }
    };
    await Promise.all(Array.from({ length: AHEAD_IN_FLIGHT }, work));
  }

  /** Stop fetching ahead. */
  rest(): void {
    this.ahead.abort();
    this.ahead = new AbortController();
  }

  retry(): void {
    this.source.refresh();
  }

  get visible(): boolean {
    return this.settings.visible;
  }

  close(): void {
    this.rest();
    for (const controller of this.inFlight.keys()) controller.abort();
  }

  /** The colour shown at a place on the screen. */
  color(pixel: number[]): Uint8ClampedArray | null {
    return this.layer.getData(pixel) as Uint8ClampedArray | null;
  }

  /** The field that comes next if the hand goes on as it did, then the ring about the present one, then its middle closer. */
  private neighbours(z: number, extent: Extent): [number, number, number][] {
    const found = new Map<string, [number, number, number]>();
    const add = (range: TileRange): void => {
      const whole = this.grid.getFullTileRange(z)!;
      for (let y = Math.max(range.minY, whole.minY); y <= Math.min(range.maxY, whole.maxY); y++) {
        for (let x = Math.max(range.minX, whole.minX); x <= Math.min(range.maxX, whole.maxX); x++) {
          if (!shown.containsXY(x, y)) found.set(`${x},${y}`, [z, x, y]);
        }
      }
    };
    const shown = this.grid.getTileRangeForExtentAndZ(extent, z);
    const next = this.seen?.z === z ? goOn(this.seen.extent, extent) : null;
    this.seen = { z, extent };
    if (next) add(this.grid.getTileRangeForExtentAndZ(next, z));
    add(new TileRange(shown.minX - 1, shown.maxX + 1, shown.minY - 1, shown.maxY + 1));
    const places = [...found.values()].slice(0, MOST_AHEAD - 1);
    if (z < this.grid.getMaxZoom()) {
      const [, x, y] = this.grid.getTileCoordForCoordAndZ(getCenter(extent), z + 1) as [number, number, number];
      if (this.grid.getFullTileRange(z + 1)!.containsXY(x, y)) places.push([z + 1, x, y]);
    }
    return places;
  }

  private request(z: number, x: number, y: number, count: number): TileRequest {
    const { id, revision = 0 } = this.scene;
    return { layer: id, revision, level: count - 1 - z, row: y, column: x, style: this.style(), index: this.index };
  }

  /** What decides the pixels of a tile; nothing where a stored tile can be shown as it is. */
  private style(): Record<string, unknown> {
    const { channel = null, colors, threshold, low, high } = this.settings;
    if (this.scene.kind === "heatmap") return { channel, colors, threshold, low, high };
    if (this.scene.kind !== "image" || (isPlain(this.scene) && channel === null)) return {};
    return { channel, low, high };
  }

  private async load(request: TileRequest, z: number): Promise<ImageBitmap> {
    const controller = new AbortController();
    this.rest();
    this.inFlight.set(controller, { z, extent: this.grid.getTileCoordExtent([z, request.column, request.row]) });
    try {
      const tile = await this.transport.tile(request, controller.signal);
      return await createImageBitmap(tile).catch(() => {
        const { level, row, column } = request;
        throw new Error(`tile ${row}, ${column} of level ${level} is damaged; expected a picture. Copy the file again.`);
      });
    } catch (error) {
      if (!controller.signal.aborted) this.fail(`${this.scene.name}: ${(error as Error).message}`);
      throw error;
    } finally {
      this.inFlight.delete(controller);
    }
  }

  /** A withdrawn tile has not failed: let it be asked for again when it comes into view. */
  private readonly reopen = (event: TileSourceEvent): void => {
    const tile = event.tile as unknown as { getError(): Error | null; setState(state: number): void };
    if (tile.getError()?.name === "AbortError") setTimeout(() => tile.setState(TileState.IDLE), 0);
  };
}

/** The field one step further in the direction from one to another; null where they are the same or far apart. */
function goOn(from: Extent, to: Extent): Extent | null {
  const [width, height] = getSize(to) as [number, number];
  const [x, y] = [(to[0]! - from[0]!) / width, (to[1]! - from[1]!) / height];
  const longer = Math.max(Math.abs(x), Math.abs(y));
  if (longer < 0.02 || longer > 2) return null;
  const [right, up] = [(x / longer) * width, (y / longer) * height];
  return [to[0]! + right, to[1]! + up, to[2]! + right, to[3]! + up];
}
