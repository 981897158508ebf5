/** A scan as a tiled layer whose tiles come from the kernel. */
import TileLayer from "ol/layer/Tile.js";
import ImageTileSource from "ol/source/ImageTile.js";
import TileGrid from "ol/tilegrid/TileGrid.js";
import TileState from "ol/TileState.js";
import type { Extent } from "ol/extent.js";
import type { TileSourceEvent } from "ol/source/Tile.js";
import { intersects } from "ol/extent.js";
import { Withdrawn, type Channel } from "./channel.ts";
import type { Frame } from "./frame.ts";
import type { LayerScene, LayerSettings } from "./types.ts";

export interface Place {
  z: number;
  extent: Extent;
}

export class RasterLayer {
  readonly layer: TileLayer<ImageTileSource>;
  private readonly grid: TileGrid;
  private readonly source: ImageTileSource;
  private readonly inFlight = new Map<number, Place>();
  private settings: LayerSettings;
  private index: Record<string, number>;

  constructor(
    readonly scene: LayerScene,
    frame: Frame,
    private readonly channel: Channel,
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
    this.grid = new TileGrid({ extent, origin, resolutions, tileSize: info.tile });
    const count = info.resolutions.length;
    this.source = new ImageTileSource({
      projection: frame.projection,
      tileGrid: this.grid,
      tileSize: info.tile,
      wrapX: false,
      transition: 120,
      interpolate: scene.kind === "image" || scene.kind === "heatmap",
      // Sharp rather than soft: the coarser level only where it is nearly fine enough for the screen.
      zDirection: (value: number, high: number) => (high * window.devicePixelRatio <= value * 1.25 ? 1 : -1),
      loader: (z: number, x: number, y: number) => this.load(count - 1 - z, y, x, z),
    } as ConstructorParameters<typeof ImageTileSource>[0]);
    this.source.on("tileloaderror", this.reopen as never);
    this.layer = new TileLayer({ source: this.source, extent, preload: 1 });
    this.apply(first.settings, first.index);
  }

  /** Take over settings; what changes the pixels asks for new tiles, the old ones stay until they are there. */
  apply(settings: LayerSettings, index: Record<string, number>): void {
    this.settings = settings;
    this.index = index;
    this.layer.setVisible(settings.visible);
    this.layer.setOpacity(settings.opacity);
    const key = JSON.stringify([this.style(), index]);
    const source = this.source as unknown as { getKey(): string; setKey(key: string): void };
    if (source.getKey() !== key) source.setKey(key);
  }

  /** Withdraw the tiles that the present view no longer shows. */
  prune(resolution: number, extent: Extent): void {
    const z = this.grid.getZForResolution(resolution, this.source.zDirection);
    const stale = [...this.inFlight].filter(
      ([, place]) => !this.settings.visible || place.z > z || place.z < z - 1 || !intersects(place.extent, extent),
    );
    this.channel.withdraw(stale.map(([id]) => id));
  }

  retry(): void {
    this.source.refresh();
  }

  private style(): Record<string, unknown> {
    const { channel = null, colors, threshold, low, high } = this.settings;
    return { channel, colors, threshold, low, high };
  }

  private async load(level: number, row: number, column: number, z: number): Promise<ImageBitmap> {
    const { id, reply } = this.channel.ask({
      type: "tile", layer: this.scene.id, level, row, column, style: this.style(), index: this.index,
    });
    this.inFlight.set(id, { z, extent: this.grid.getTileCoordExtent([z, column, row]) });
    try {
      const { head, buffers } = await reply;
      return await createImageBitmap(new Blob([buffers[0]!], { type: head.mime as string }));
    } catch (error) {
      if (!(error instanceof Withdrawn)) this.fail(`${this.scene.name}: ${(error as Error).message}`);
      throw error;
    } finally {
      this.inFlight.delete(id);
    }
  }

  /** A withdrawn tile has not failed: let it be asked for again when it comes into view. */
  private readonly reopen = (event: TileSourceEvent): void => {
    const tile = event.tile as unknown as { getError(): Error | null; setState(state: number): void };
    if (tile.getError() instanceof Withdrawn) setTimeout(() => tile.setState(TileState.IDLE), 0);
  };
}
