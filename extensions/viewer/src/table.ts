/** The annotations in view as a table: where the eye finds the largest, a click goes there. */
import { make, swatch } from "./dom.ts";
import { grouped, tidy } from "./frame.ts";
import type { DocumentLayer } from "./drawing/layer.ts";
import type { Hit, ShapesLayer } from "./shapes.ts";

type Annotated = ShapesLayer | DocumentLayer;

const MOST = 200;

export interface TableEvents {
  go(layer: Annotated, hit: Hit): void;
  point(layer: Annotated, hit: Hit | null): void;
  area(pixels: number): string;
}

export class AnnotationTable {
  readonly element: HTMLDetailsElement;
  private readonly summary = make("summary");
  private readonly body = make("tbody");
  private readonly note = make("p", { class: "dhv-note" });
  private shown = "";
  private layers: Annotated[] = [];

  constructor(private readonly events: TableEvents, open: boolean) {
    const head = ["Class", "Area", "Score"].map((name) => make("th", { scope: "col" }, name));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), this.body);
    this.element = make("details", { class: "dhv-card dhv-table", open }, this.summary, table, this.note);
    this.element.addEventListener("toggle", () => this.update(this.layers));
  }

  /** List what these layers show in the view, the largest first. */
  update(layers: Annotated[]): void {
    this.layers = layers;
    this.element.hidden = !layers.length;
    if (!this.element.open) this.summary.textContent = "In view";
    if (this.element.hidden || !this.element.open) return;
    const lists = layers.map((layer) => ({ layer, ...layer.list(MOST) }));
    const count = lists.reduce((sum, one) => sum + one.count, 0);
    const dotted = lists.some((one) => one.dotted);
    const rows = lists.flatMap(({ layer, hits }) => hits.map((hit) => ({ layer, hit })));
    rows.sort((a, b) => (b.hit.area ?? 0) - (a.hit.area ?? 0));
    rows.splice(MOST);
    const key = JSON.stringify([count, dotted, rows.map(({ layer, hit }) => [layer.scene.id, layer.color(hit.label), hit])]);
    // A table that is written anew under the pointer cannot be used.
    this.summary.textContent = `In view: ${grouped(count)}${dotted ? " outlined" : ""}`;
    if (key === this.shown) return;
    this.shown = key;
    this.body.replaceChildren(...rows.map(({ layer, hit }) => this.row(layer, hit)));
    this.note.textContent = dotted ? "Zoom in to list those drawn as dots." : count > MOST ? `The ${MOST} largest are listed.` : "";
    this.note.hidden = !this.note.textContent;
  }

  private row(layer: Annotated, hit: Hit): HTMLElement {
    const name = hit.title && hit.title !== hit.name ? `${hit.name}, ${hit.title}` : hit.name;
    const go = make("button", { type: "button", title: `Go to ${name}` }, swatch(layer.color(hit.label)), make("span", { class: "dhv-name" }, name));
    go.addEventListener("click", () => this.events.go(layer, hit));
    const row = make(
      "tr", {}, make("td", {}, go), make("td", {}, hit.area ? this.events.area(hit.area) : ""),
      make("td", {}, hit.score === undefined ? "" : tidy(hit.score, 3)),
    );
    for (const enter of ["pointerenter", "focusin"]) row.addEventListener(enter, () => this.events.point(layer, hit));
    for (const leave of ["pointerleave", "focusout"]) row.addEventListener(leave, () => this.events.point(layer, null));
    return row;
  }
}
