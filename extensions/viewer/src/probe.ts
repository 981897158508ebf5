/** The value under the cursor: the colour shown where pixels are colours, else the stored value, asked for. */
import { tidy } from "./frame.ts";
import type { RasterLayer } from "./raster.ts";
import type { Transport } from "./transport.ts";
import { isPlain, type LayerScene } from "./types.ts";

const REST_MS = 90;
const MOST_NAMED = 3;

export class Probe {
  private asked = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly layers: () => RasterLayer[],
    private readonly transport: Transport,
    private readonly show: (text: string) => void,
  ) {}

  /** Read the layers at a place: pixels of the screen, and level-0 pixels (y, x) of the base. */
  read(pixel: number[], [y, x]: [number, number], index: Record<string, number>): void {
    this.leave();
    const { signal } = this.asked;
    const parts: string[] = [];
    const exact: { at: number; layer: LayerScene; y: number; x: number }[] = [];
    for (const { scene, visible, color } of this.layers().map((l) => ({ scene: l.scene, visible: l.visible, color: l.color(pixel) }))) {
      const own = { y: Math.floor((y - scene.offset[0]) / scene.scale[0]), x: Math.floor((x - scene.offset[1]) / scene.scale[1]) };
      const [height, width] = scene.info!.shape.map((n, i) => n / scene.info!.aspect[i]!) as [number, number];
      if (!visible || own.y < 0 || own.x < 0 || own.y >= height || own.x >= width) continue;
      if (isPlain(scene)) parts.push(color ? `RGB ${color[0]} ${color[1]} ${color[2]}` : "");
      else exact.push({ at: parts.push("") - 1, layer: scene, ...own });
    }
    this.show(said(parts));
    if (!exact.length) return;
    this.timer = setTimeout(() => {
      for (const { at, layer, ...place } of exact) {
        this.transport.values({ layer: layer.id, ...place, index }, signal).then(
          (values) => {
            parts[at] = name(layer, values);
            if (!signal.aborted) this.show(said(parts));
          },
          // The tile that cannot be read has said so already.
          () => undefined,
        );
      }
    }, REST_MS);
  }

  leave(): void {
    clearTimeout(this.timer);
    this.asked.abort();
    this.asked = new AbortController();
    this.show("");
  }
}

function said(parts: string[]): string {
  return parts.filter(Boolean).join(" · ");
}

function name({ kind, classes, name: title, modality }: LayerScene, stored: (number | null)[]): string {
  const values = stored.map((value) => value ?? NaN);
  const [first = NaN] = values;
  if (kind === "labels") return first > 0 ? (classes[first - 1]?.name ?? `label ${first}`) : "";
  if (kind === "mask") return first > 0 ? (classes[0]?.name ?? title) : "";
  const unit = modality === "CT" ? " HU" : "";
  if (values.length < 2) return kind === "heatmap" ? `${classes[0]?.name ?? title} ${tidy(first)}` : tidy(first, 5) + unit;
  const named = values.map((value, i) => ({ value, name: classes[i]?.name ?? `${i}` }));
  if (kind === "heatmap") named.sort((a, b) => b.value - a.value);
  return named.slice(0, MOST_NAMED).map((one) => `${one.name} ${tidy(one.value)}`).join("  ");
}
