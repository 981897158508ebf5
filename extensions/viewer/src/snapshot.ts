/** The view as a picture to keep: what is drawn, with scale bar and legend. */
import type Map from "ol/Map.js";
import { tidy } from "./frame.ts";
import type { LayerScene, LayerSettings, Rgb } from "./types.ts";

const MARGIN = 12;
const LINE = 20;

export interface Legend {
  layers: { scene: LayerScene; settings: LayerSettings }[];
  bar: { length: number; label: string };
}

/** Draw the view on a canvas of its own. */
export function takeSnapshot(map: Map, { layers, bar }: Legend): HTMLCanvasElement {
  const [width = 0, height = 0] = map.getSize() ?? [];
  const ratio = window.devicePixelRatio;
  const canvas = Object.assign(document.createElement("canvas"), { width: width * ratio, height: height * ratio });
  const pen = canvas.getContext("2d")!;
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  const selector = ":scope > .ol-layers > .ol-layer > canvas";
  for (const drawn of map.getViewport()!.querySelectorAll<HTMLCanvasElement>(selector)) {
    if (!drawn.width) continue;
    const { opacity } = drawn.parentElement!.style;
    pen.globalAlpha = opacity === "" ? 1 : Number(opacity);
    pen.setTransform(new DOMMatrix(drawn.style.transform).preMultiplySelf(new DOMMatrix([ratio, 0, 0, ratio, 0, 0])));
    pen.drawImage(drawn, 0, 0);
  }
  pen.globalAlpha = 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.font = "13px system-ui, sans-serif";
  pen.textBaseline = "middle";
  drawBar(pen, { ...bar, bottom: height - MARGIN });
  drawLegend(pen, entries(layers), width - MARGIN);
  return canvas;
}

/** Hand a picture to the browser as a file. */
export function download(canvas: HTMLCanvasElement, name: string): void {
  canvas.toBlob((blob) => {
    if (!blob) return;
    const url = URL.createObjectURL(blob);
    Object.assign(document.createElement("a"), { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  }, "image/png");
}

type Entry = { text: string; color?: Rgb; ramp?: Rgb[] };

function entries(layers: Legend["layers"]): Entry[] {
  return layers.flatMap(({ scene, settings }): Entry[] => {
    if (!settings.visible || scene.kind === "image") return [];
    const channel = settings.channel ?? (scene.classes.length < 2 ? 0 : null);
    if (scene.kind === "heatmap" && channel !== null) {
      const color = scene.classes[channel]?.color ?? [0, 0, 0];
      const ramp = scene.maps?.[settings.colors ?? ""] ?? [[255, 255, 255], color];
      const { low = 0, high = 1, threshold = 0 } = settings;
      const least = threshold ? `, shown from ${tidy(low + threshold * (high - low))}` : "";
      return [{ text: `${scene.classes[channel]?.name ?? scene.name} ${tidy(low)} to ${tidy(high)}${least}`, ramp }];
    }
    return scene.classes
      .map((one, i) => ({ ...one, color: settings.class_colors?.[i] ?? one.color }))
      .filter((one, i) => one.count !== 0 && !settings.hidden.includes(i) && one.name.toLowerCase() !== "background")
      .map(({ name, color }) => ({ text: name, color }));
  });
}

function plate(pen: CanvasRenderingContext2D, x: number, y: number, size: [number, number]): void {
  pen.fillStyle = "rgb(255 255 255 / 88%)";
  pen.fillRect(x, y, ...size);
  pen.fillStyle = "#1f1f1f";
}

function drawBar(pen: CanvasRenderingContext2D, bar: Legend["bar"] & { bottom: number }): void {
  const wide = Math.max(bar.length, pen.measureText(bar.label).width);
  const top = bar.bottom - 38;
  plate(pen, MARGIN, top, [wide + 20, 38]);
  pen.textAlign = "center";
  pen.fillText(bar.label, MARGIN + 10 + wide / 2, top + 13);
  pen.fillRect(MARGIN + 10 + (wide - bar.length) / 2, top + 26, bar.length, 4);
  pen.textAlign = "left";
}

function drawLegend(pen: CanvasRenderingContext2D, list: Entry[], right: number): void {
  if (!list.length) return;
  const wide = Math.max(...list.map(({ text, ramp }) => pen.measureText(text).width + (ramp ? 60 : 12))) + 28;
  const left = right - wide;
  plate(pen, left, MARGIN, [wide, list.length * LINE + 12]);
  list.forEach(({ text, color, ramp }, number) => {
    const y = MARGIN + 16 + number * LINE;
    const box = ramp ? 60 : 12;
    if (ramp) {
      const fill = pen.createLinearGradient(left + 10, 0, left + 10 + box, 0);
      ramp.forEach((stop, i) => fill.addColorStop(i / (ramp.length - 1), `rgb(${stop})`));
      pen.fillStyle = fill;
    } else {
      pen.fillStyle = `rgb(${color})`;
    }
    pen.fillRect(left + 10, y - 6, box, 12);
    pen.fillStyle = "#1f1f1f";
    pen.fillText(text, left + 18 + box, y);
  });
}
