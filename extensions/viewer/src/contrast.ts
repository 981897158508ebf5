/** Which stored values are black and white: sliders, the windows of CT, and dragging on the picture. */
import { make, row } from "./dom.ts";
import { tidy } from "./frame.ts";
import type { LayerScene, LayerSettings } from "./types.ts";

type Change = (changes: Partial<LayerSettings>) => void;
type Range = [number, number];

// Level and width in Hounsfield units, as radiology workstations offer them.
const CT_WINDOWS: Record<string, Range> = {
  "Soft tissue": [40, 400],
  Lung: [-600, 1500],
  Bone: [400, 1800],
  Brain: [40, 80],
  Stroke: [40, 40],
  Subdural: [75, 215],
  Mediastinum: [50, 350],
  Liver: [60, 160],
};
const STEPS = 500;
const WAIT_MS = 60;
// A drag of this length doubles the width of the window.
const DRAG_PX = 200;

/** Add the controls to a layer's card; the function returned shows settings that were changed elsewhere. */
export function contrastControls(layer: LayerScene, body: HTMLElement, change: Change): (settings: LayerSettings) => void {
  const [low, high] = layer.display ?? [0, 255];
  const span = high - low || 1;
  // A drag may go beyond what the data hold, the sliders stay where something is to be seen.
  const least = low >= 0 ? Math.max(0, low - span) : low - span;
  const step = span / STEPS;
  const inputs = (["low", "high"] as const).map((end) => {
    const said = end === "low" ? "Black" : "White";
    const input = make("input", { type: "range", min: least, max: high + span, step, "aria-label": `${said} of ${layer.name}` });
    const output = make("output", { class: "dhv-value" });
    let timer: ReturnType<typeof setTimeout> | undefined;
    input.addEventListener("input", () => {
      output.textContent = tidy(Number(input.value));
      clearTimeout(timer);
      timer = setTimeout(() => change({ [end]: Number(input.value) }), WAIT_MS);
    });
    body.append(row(said, input, output));
    return { end, input, output };
  });
  const select = make("select", { "aria-label": `Window of ${layer.name}` });
  const windows: Record<string, Range> = { Automatic: [low, high] };
  if (layer.modality === "CT") {
    for (const [name, [level, width]] of Object.entries(CT_WINDOWS)) windows[name] = [level - width / 2, level + width / 2];
  }
  for (const name of Object.keys(windows)) select.append(make("option", { value: name }, name));
  const free = make("option", { value: "" }, "Own");
  select.append(free);
  select.addEventListener("change", () => {
    const picked = windows[select.value];
    if (picked) change({ low: picked[0], high: picked[1] });
  });
  const said = make("output", { class: "dhv-window", "aria-label": `Level and width of the window of ${layer.name}` });
  body.append(row("Window", select), said);
  return (settings) => {
    const now = { low: settings.low ?? low, high: settings.high ?? high };
    for (const { end, input, output } of inputs) {
      if (document.activeElement !== input) input.value = String(now[end]);
      output.textContent = tidy(now[end]);
    }
    const known = Object.entries(windows).find(([, [a, b]]) => Math.abs(a - now.low) + Math.abs(b - now.high) < step / 2);
    select.value = known?.[0] ?? "";
    free.hidden = known !== undefined;
    said.textContent = `level ${tidy((now.low + now.high) / 2)}, width ${tidy(now.high - now.low)}`;
  };
}

/**
 * Drag with the right button, or with Shift where it is free: across changes the width of the window, up and down its
 * level.
 */
export function dragWindow(
  stage: HTMLElement, { display: [low, high], read, change, free }: { display: Range; read(): LayerSettings; change: Change; free(): boolean },
): void {
  let start: { x: number; y: number; level: number; width: number } | null = null;
  let asked = 0;
  const begins = (event: PointerEvent): boolean => event.button === 2 || (event.button === 0 && event.shiftKey && !event.altKey && free());
  stage.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    // JupyterLab has a menu of its own.
    event.stopPropagation();
  });
  stage.addEventListener(
    "pointerdown",
    (event) => {
      if (!begins(event) || !(event.target instanceof HTMLCanvasElement || event.target === stage)) return;
      // OpenLayers would draw its zoom box.
      event.stopPropagation();
      const { low: a = low, high: b = high } = read();
      start = { x: event.clientX, y: event.clientY, level: (a + b) / 2, width: b - a || 1 };
      stage.setPointerCapture(event.pointerId);
    },
    { capture: true },
  );
  stage.addEventListener("pointermove", (event) => {
    if (!start) return;
    // A narrow window is set finely, a wide one quickly.
    const gain = start.width / DRAG_PX;
    const width = Math.max(gain, start.width + (event.clientX - start.x) * gain);
    const level = start.level + (event.clientY - start.y) * gain;
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => change({ low: level - width / 2, high: level + width / 2 }));
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => (start = null));
}
