/** The list of layers, topmost first: visibility, opacity, class, colours, threshold, legend, slices. */
import { contrastControls } from "./contrast.ts";
import { icon, make, row, swatch } from "./dom.ts";
import { grouped, tidy } from "./frame.ts";
import { isPlain, type LayerScene, type LayerSettings, type Rgb, type Settings } from "./types.ts";

const KINDS: Record<LayerScene["kind"], string> = {
  image: "image", heatmap: "heat map", mask: "mask", labels: "label map", shapes: "annotations",
};

export interface PanelEvents {
  change(id: number, changes: Partial<LayerSettings>): void;
  slice(axis: string, at: number): void;
  /** The classes of a layer that can be drawn on, if it is one. */
  classes(layer: LayerScene): HTMLElement | null;
}

export class Panel {
  readonly element = make("aside", { class: "dhv-panel", "aria-label": "Layers" });
  private readonly cardList = make("div");
  private readonly cards = new Map<number, (settings: LayerSettings) => void>();
  private readonly sliders = new Map<string, (at: number) => void>();
  private listed = "";

  constructor(layers: LayerScene[], private readonly events: PanelEvents, below: HTMLElement[]) {
    this.element.append(this.cardList, ...below);
    this.list(layers);
  }

  /** Show these layers instead of those that were shown. */
  list(layers: LayerScene[]): void {
    const key = JSON.stringify(layers.map((layer) => this.known(layer)));
    // Who types in a card would be interrupted by another one in its place.
    if (key === this.listed) return;
    this.listed = key;
    this.cards.clear();
    this.sliders.clear();
    this.cardList.replaceChildren();
    const base = layers.find((layer) => layer.base);
    for (const [axis, length] of Object.entries(base?.info?.axes ?? {})) {
      if (length > 1) this.cardList.append(this.sliceCard(axis, length));
    }
    for (const layer of [...layers].reverse()) this.cardList.append(this.card(layer));
  }

  /** What a card says of a layer once and for all. */
  private known({ document, revision: _, ...layer }: LayerScene): object {
    return document && this.events.classes(layer) ? { ...layer, classes: [], count: 0, drawn: true } : layer;
  }

  /** Whether a single layer has more to choose than its opacity. */
  get useful(): boolean {
    return this.sliders.size > 0 || this.element.querySelector("select, .dhv-classes") !== null;
  }

  /** Show settings that were changed elsewhere. */
  apply(settings: Settings, index: Record<string, number>): void {
    for (const [id, update] of this.cards) {
      const own = settings[String(id)];
      if (own) update(own);
    }
    for (const [axis, update] of this.sliders) update(index[axis] ?? 0);
  }

  private sliceCard(axis: string, length: number): HTMLElement {
    const shown = make("output", { class: "dhv-value" });
    const input = make("input", { type: "range", min: 0, max: length - 1, step: 1, "aria-label": `Slice along ${axis}` });
    input.addEventListener("input", () => this.events.slice(axis, Number(input.value)));
    this.sliders.set(axis, (at) => {
      input.value = String(at);
      shown.textContent = `${at + 1} / ${length}`;
    });
    const name = axis === "t" ? "Time" : "Slice";
    return make("section", { class: "dhv-card" }, row(`${name} ${axis}`, input, shown));
  }

  private card(layer: LayerScene): HTMLElement {
    const change = (changes: Partial<LayerSettings>): void => this.events.change(layer.id, changes);
    const visible = make("input", { type: "checkbox", class: "dhv-eye", "aria-label": `Show ${layer.name}` });
    visible.addEventListener("change", () => change({ visible: visible.checked }));
    const eye = make("label", { class: "dhv-eye-label", title: `Show or hide ${layer.name}` }, visible, icon("eye"));
    const heading = make(
      "header", { class: "dhv-card-head" }, eye, make("span", { class: "dhv-name", title: layer.name }, layer.name),
      make("span", { class: "dhv-kind" }, layer.count === undefined || layer.document ? KINDS[layer.kind] : grouped(layer.count)),
    );
    const updates: ((settings: LayerSettings) => void)[] = [(s) => (visible.checked = s.visible)];
    const body = make("div", { class: "dhv-card-body" });
    const opacity = slider(`Opacity of ${layer.name}`, (value) => change({ opacity: value }));
    updates.push((s) => opacity.show(s.opacity));
    body.append(row("Opacity", opacity.input, opacity.output));
    if (layer.kind === "heatmap") updates.push(this.heatControls(layer, body, change));
    else if (layer.kind === "shapes") {
      const classes = this.events.classes(layer);
      if (classes) body.append(classes);
      else updates.push(classToggles(layer, body, change));
    }
    else if (layer.kind === "labels" || layer.kind === "mask") body.append(legend(layer));
    else if (!isPlain(layer)) {
      if (layer.classes.length > 1) updates.push(channelSelect(layer, body, "All channels", change));
      updates.push(contrastControls(layer, body, change));
    }
    const card = make("section", { class: "dhv-card", "data-layer": layer.id, "aria-label": layer.name }, heading, body);
    this.cards.set(layer.id, (settings) => {
      card.classList.toggle("dhv-off", !settings.visible);
      for (const update of updates) update(settings);
    });
    return card;
  }

  private heatControls(
    layer: LayerScene, body: HTMLElement, change: (changes: Partial<LayerSettings>) => void,
  ): (settings: LayerSettings) => void {
    const single = layer.classes.length < 2;
    const pick = single ? () => undefined : channelSelect(layer, body, "All classes", change);
    const maps = make("select", { "aria-label": `Colour map of ${layer.name}` });
    for (const name of [...Object.keys(layer.maps ?? {}), "class"]) {
      maps.append(make("option", { value: name }, name === "class" ? "class colour" : name));
    }
    maps.addEventListener("change", () => change({ colors: maps.value }));
    const colors = row("Colours", maps);
    const threshold = slider(`Threshold of ${layer.name}`, (value) => change({ threshold: value }), 150);
    const cut = make("span", { class: "dhv-cut" });
    const bar = make("div", { class: "dhv-ramp" }, cut);
    const ends = make("div", { class: "dhv-ends" });
    const ramp = make("div", { class: "dhv-legend", role: "img" }, bar, ends);
    const names = legend(layer);
    body.append(colors, row("Threshold", threshold.input, threshold.output), ramp, names);
    return (settings) => {
      pick(settings);
      const all = !single && settings.channel == null;
      colors.hidden = ramp.hidden = all;
      names.hidden = !all;
      maps.value = settings.colors ?? "turbo";
      threshold.show(settings.threshold ?? 0);
      const color = layer.classes[settings.channel ?? 0]?.color ?? [0, 0, 0];
      const stops = layer.maps?.[maps.value];
      bar.style.background = stops
        ? `linear-gradient(to right, ${stops.map((c) => `rgb(${c})`).join(", ")})`
        : `linear-gradient(to right, rgba(${color},0), rgb(${color}))`;
      const [low, high, share] = [settings.low ?? 0, settings.high ?? 1, settings.threshold ?? 0];
      const least = share > 0 ? tidy(low + share * (high - low)) : "";
      cut.style.width = `${share * 100}%`;
      cut.hidden = share === 0;
      ends.replaceChildren(...[tidy(low), least && `from ${least}`, tidy(high)].map((text) => make("span", {}, text)));
      ramp.setAttribute("aria-label", `Colours of ${layer.name} from ${tidy(low)} to ${tidy(high)}${least && `, shown from ${least}`}`);
    };
  }
}

function legend(layer: LayerScene): HTMLElement {
  const list = make("ul", { class: "dhv-classes", "aria-label": `Classes of ${layer.name}` });
  for (const one of layer.classes) {
    // Nothing is painted for the background of a heat map.
    if (layer.kind === "heatmap" && one.name.toLowerCase() === "background") continue;
    list.append(make("li", {}, swatch(one.color), make("span", { class: "dhv-name" }, one.name)));
  }
  return list;
}

function classToggles(
  layer: LayerScene, body: HTMLElement, change: (changes: Partial<LayerSettings>) => void,
): (settings: LayerSettings) => void {
  const list = make("ul", { class: "dhv-classes", "aria-label": `Classes of ${layer.name}` });
  const boxes: HTMLInputElement[] = [];
  const colors: HTMLInputElement[] = [];
  for (const one of layer.classes) {
    const box = make("input", { type: "checkbox", "aria-label": `Show ${one.name}` });
    boxes.push(box);
    box.addEventListener("change", () => {
      change({ hidden: boxes.flatMap((b, i) => (b.checked ? [] : [i])) });
    });
    const color = make("input", { type: "color", class: "dhv-color", "aria-label": `Colour of ${one.name}`, title: `Colour of ${one.name}` });
    color.addEventListener("input", () => change({ class_colors: colors.map((c) => fromHex(c.value)) }));
    colors.push(color);
    const line = make("label", {}, box, make("span", { class: "dhv-name" }, one.name));
    line.append(make("span", { class: "dhv-kind" }, grouped(one.count ?? 0)));
    const item = make("li", {}, color, line);
    item.hidden = one.count === 0;
    list.append(item);
  }
  body.append(list);
  return ({ hidden, class_colors }) => {
    boxes.forEach((box, i) => (box.checked = !hidden.includes(i)));
    colors.forEach((input, i) => (input.value = toHex(class_colors?.[i] ?? layer.classes[i]!.color)));
  };
}

export function toHex(color: Rgb): string {
  return `#${color.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

export function fromHex(text: string): Rgb {
  return [1, 3, 5].map((at) => Number.parseInt(text.slice(at, at + 2), 16)) as Rgb;
}

function channelSelect(
  layer: LayerScene, body: HTMLElement, all: string, change: (changes: Partial<LayerSettings>) => void,
): (settings: LayerSettings) => void {
  const what = layer.kind === "heatmap" ? "Class" : "Channel";
  const select = make("select", { "aria-label": `${what} of ${layer.name}` }, make("option", { value: "" }, all));
  layer.classes.forEach((one, i) => select.append(make("option", { value: i }, one.name)));
  select.addEventListener("change", () => change({ channel: select.value === "" ? null : Number(select.value) }));
  body.append(row(what, select));
  return (settings) => (select.value = settings.channel == null ? "" : String(settings.channel));
}

function slider(
  label: string, act: (value: number) => void, wait = 0,
): { input: HTMLInputElement; output: HTMLOutputElement; show(value: number): void } {
  const input = make("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": label });
  const output = make("output", { class: "dhv-value" });
  const show = (value: number): void => {
    if (document.activeElement !== input || Number(input.value) !== value) input.value = String(value);
    output.textContent = `${Math.round(value * 100)} %`;
  };
  let timer: ReturnType<typeof setTimeout> | undefined;
  input.addEventListener("input", () => {
    output.textContent = `${Math.round(Number(input.value) * 100)} %`;
    clearTimeout(timer);
    if (wait) timer = setTimeout(() => act(Number(input.value)), wait);
    else act(Number(input.value));
  });
  return { input, output, show };
}
