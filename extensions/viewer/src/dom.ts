/** Small helpers to make accessible elements. */

type Attributes = Record<string, string | number | boolean | null | undefined>;

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K, attributes: Attributes = {}, ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

const PATHS: Record<string, string> = {
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  fit: "M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10",
  rotate: "M13 8a5 5 0 1 1-1.6-3.7M13.2 1.8v3h-3",
  layers: "M8 2 2 5.2l6 3.2 6-3.2ZM2.4 8.2 8 11.2l5.6-3M2.4 11 8 14l5.6-3",
  full: "M9.5 2.5h4v4M13.2 2.8 9 7M6.5 13.5h-4v-4M2.8 13.2 7 9",
  eye: "M1.5 8S4 3.8 8 3.8 14.5 8 14.5 8 12 12.2 8 12.2 1.5 8 1.5 8ZM8 10a2 2 0 1 0 0-4 2 2 0 0 0 0 4Z",
  close: "M4 4l8 8M12 4l-8 8",
  photo: "M2.5 4.5h2.6l1-1.6h3.8l1 1.6h2.6v8h-11ZM8 10.6a2.3 2.3 0 1 0 0-4.6 2.3 2.3 0 0 0 0 4.6Z",
  pan: "M8 2v12M2 8h12M6.4 3.6 8 2l1.6 1.6M6.4 12.4 8 14l1.6-1.6M3.6 6.4 2 8l1.6 1.6M12.4 6.4 14 8l-1.6 1.6",
  select: "M4 2.5v10.2l2.7-2.5 1.7 3.6 1.7-.8-1.7-3.5h3.7Z",
  edit: "M3.5 12.5 6 4l7 3.5M2.2 11.2h2.6v2.6H2.2ZM4.7 2.7h2.6v2.6H4.7ZM11.7 6.2h2.6v2.6h-2.6Z",
  point: "M8 14s4-4.2 4-7.2a4 4 0 1 0-8 0C4 9.8 8 14 8 14ZM8 8a1.3 1.3 0 1 0 0-2.6A1.3 1.3 0 0 0 8 8Z",
  line: "M2.5 12c2-7 4 2 6-3s3-4 5-5",
  rectangle: "M2.5 4h11v8h-11Z",
  ellipse: "M8 12.5c3.3 0 6-2 6-4.5s-2.7-4.5-6-4.5S2 5.5 2 8s2.7 4.5 6 4.5Z",
  polygon: "M8 2.5 13.5 6.5 11.5 13h-7L2.5 6.5Z",
  freehand: "M3 9c-1-4 2-6.5 5-5 2 1 5-.5 5.5 2s-1 3-1.5 5-4 2.5-5.5 1.5S3.5 11.5 3 9Z",
  brush: "M13.5 2.5 7.5 8.5M6 8.3c1.3 0 2 .9 2 2 0 2-1.7 3.2-5.5 3.2 1.2-.8 1.2-1.7 1.4-2.9.2-1.4.9-2.3 2.1-2.3Z",
  eraser: "M6 13.5 2.5 10 9.5 3l4 4-6.5 6.5ZM6 6.5l4 4M6 13.5h7.5",
  wand: "M2.5 13.5 9 7M11 2v2.5M11 7.5V10M7.3 5.8h2.2M12.5 5.8h2M12.8 3.2l-.9.9M9.2 3.2l.9.9M12.8 8.4l-.9-.9",
  hole: "M2.5 3h11v10h-11ZM8 10.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z",
  split: "M3 3.5h3.5v9H3ZM9.5 3.5H13v9H9.5ZM8 1.5v1.5M8 5v2M8 9v2M8 13v1.5",
  magnet: "M3 2.5v5.5a5 5 0 0 0 10 0V2.5h-3V8a2 2 0 0 1-4 0V2.5ZM3 5.5h3M10 5.5h3",
  copy: "M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8Z",
  undo: "M6 3 3 6l3 3M3 6h6.5a3.5 3.5 0 0 1 0 7H6",
  redo: "M10 3l3 3-3 3M13 6H6.5a3.5 3.5 0 0 0 0 7H10",
  pen: "M10.5 3 13 5.5 5.5 13H3v-2.5Z",
  help: "M5.6 6a2.4 2.4 0 1 1 3.6 2.1c-.9.5-1.2.9-1.2 1.7M8 12.6v.2",
};

export function icon(name: string): SVGSVGElement {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name] ?? "");
  svg.append(path);
  return svg;
}

export function button(label: string, name: string, act: () => void, keys = ""): HTMLButtonElement {
  const element = make("button", {
    type: "button", class: "dhv-button", title: keys ? `${label} (${keys})` : label, "aria-label": label,
    "aria-keyshortcuts": keys || null,
  });
  element.append(icon(name));
  element.addEventListener("click", act);
  return element;
}

/** A control and its name on one line. */
export function row(name: string, ...controls: HTMLElement[]): HTMLElement {
  return make("label", { class: "dhv-row" }, make("span", { class: "dhv-row-name" }, name), ...controls);
}

export function swatch(color: number[]): HTMLElement {
  const element = make("span", { class: "dhv-swatch", "aria-hidden": "true" });
  element.style.setProperty("--dhv-swatch", `rgb(${color})`);
  return element;
}
