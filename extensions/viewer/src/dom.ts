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
