/** Who changed what, when and with which tool, the latest first. */
import { make } from "../dom.ts";
import { grouped } from "../frame.ts";
import { when } from "./selected.ts";
import { act } from "./toolbar.ts";

export interface HistoryEntry {
  clock: number;
  writer: string;
  author: string;
  time: string;
  tool: string;
  /** The first of the objects that it changed. */
  objects: string[];
  count: number;
  /** In words. */
  what: string;
  undoes?: [number, string] | null;
  redoes?: [number, string] | null;
}

export interface HistoryEvents {
  /** Entries before one, which clock and writer name together, of one object or of all. */
  fetch(before: [number, string] | null, object: string | null): Promise<HistoryEntry[]>;
  go(objects: string[]): void;
  /** Whether anything can be taken back. */
  writable(): boolean;
  /** What clock and writer name together. */
  revert(edit: [number, string]): void;
}

const PAGE = 500;

export class HistoryCard {
  readonly element: HTMLDetailsElement;
  private readonly body = make("tbody");
  private readonly note = make("p", { class: "dhv-note" });
  private readonly only = make("input", { type: "checkbox" });
  private readonly onlyRow = make("label", { class: "dhv-row" }, this.only, make("span", {}, "Of the selected object alone"));
  private readonly more = act("Earlier", () => void this.load(true));
  private entries: HistoryEntry[] = [];
  private object: string | null = null;
  private asked = 0;

  constructor(private readonly events: HistoryEvents) {
    const head = ["When", "Who", "What"].map((name) => make("th", { scope: "col" }, name));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), this.body);
    this.element = make("details", { class: "dhv-card dhv-history" }, make("summary", {}, "History"), this.onlyRow, table, this.note, this.more);
    this.element.addEventListener("toggle", () => this.refresh());
    this.only.addEventListener("change", () => this.refresh());
    this.onlyRow.hidden = this.more.hidden = true;
  }

  /** The selected object, if it is one. */
  follow(object: string | null): void {
    if (object === this.object) return;
    this.object = object;
    this.onlyRow.hidden = object === null;
    if (this.only.checked) this.refresh();
  }

  refresh(): void {
    if (this.element.open) void this.load(false);
  }

  private async load(more: boolean): Promise<void> {
    const turn = ++this.asked;
    const last = more ? this.entries.at(-1) : undefined;
    try {
      const found = await this.events.fetch(last ? [last.clock, last.writer] : null, this.only.checked ? this.object : null);
      if (turn !== this.asked) return;
      this.entries = more ? [...this.entries, ...found] : found;
      this.more.hidden = found.length < PAGE;
      this.draw();
    } catch (error) {
      this.note.textContent = (error as Error).message;
    }
  }

  private draw(): void {
    const undone = new Set<string>();
    // The latest first: what was undone and then done again stands.
    for (const { undoes, redoes } of [...this.entries].reverse()) {
      if (undoes) undone.add(undoes.join());
      if (redoes) undone.delete(redoes.join());
    }
    this.body.replaceChildren(...this.entries.map((entry) => this.row(entry, undone.has(`${entry.clock},${entry.writer}`))));
    this.note.textContent = this.entries.length ? "" : "Nothing was changed yet.";
    this.note.hidden = this.entries.length > 0;
  }

  private row(entry: HistoryEntry, undone: boolean): HTMLElement {
    const { author, time, objects, count, undoes, redoes } = entry;
    const tool = undoes ? "undo" : redoes ? "redo" : entry.tool;
    const what = count < 2 ? tool : `${tool} · ${grouped(count)}`;
    const go = make("button", { type: "button", title: `${entry.what}: select it` }, make("span", { class: "dhv-name" }, what));
    go.addEventListener("click", () => this.events.go(objects));
    const at = make("time", { datetime: time, title: new Date(time).toLocaleString() }, when(time));
    const row = make("tr", {}, make("td", {}, at), make("td", { class: "dhv-name", title: author }, author), make("td", {}, go));
    row.classList.toggle("dhv-undone", undone);
    // Undo passes over what another program wrote into the file.
    if (entry.tool === "file" && !undone && this.events.writable()) {
      row.lastElementChild!.append(act("Take back", () => this.events.revert([entry.clock, entry.writer])));
    }
    return row;
  }
}
