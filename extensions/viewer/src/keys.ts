/** What the keys and the mouse do: one table for the keyboard and for the help that tells of it. */
import { button, make } from "./dom.ts";

export interface Key {
  keys: string[];
  shown: string;
  does: string;
  act?: () => void;
}

/** The act of a key that was pressed on the view, if it has one. */
export function actOf(table: Key[], event: KeyboardEvent): (() => void) | undefined {
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  return table.find(({ keys }) => keys.includes(event.key))?.act;
}

export class Help {
  readonly element: HTMLElement;
  private readonly tables = make("div", { class: "dhv-help-tables" });
  private before: Element | null = null;

  /** `groups` tells what the keys do at the time, under a name for each group. */
  constructor(private readonly groups: () => Record<string, Key[]>) {
    const shut = button("Close the help", "close", () => this.toggle());
    const title = make("div", { class: "dhv-help-title" }, make("strong", {}, "Keys and mouse"), shut);
    this.element = make(
      "div", { class: "dhv-help", role: "dialog", "aria-label": "Keys and mouse", hidden: true }, title,
      this.tables,
    );
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.toggle();
    });
  }

  toggle(): void {
    this.element.hidden = !this.element.hidden;
    if (this.element.hidden) {
      (this.before as HTMLElement | null)?.focus();
      return;
    }
    const tables = Object.entries(this.groups()).map(([name, keys]) => {
      const rows = keys.filter(({ shown }) => shown).map(({ shown, does }) =>
        make("tr", {}, make("th", { scope: "row" }, ...shown.split(" or ").flatMap(written)), make("td", {}, does)),
      );
      return make("table", {}, make("caption", {}, name), make("tbody", {}, ...rows));
    });
    this.tables.replaceChildren(...tables);
    this.before = document.activeElement;
    this.element.querySelector("button")?.focus();
  }
}

function written(key: string, at: number): (Node | string)[] {
  return [...(at ? [" or "] : []), make("kbd", {}, key)];
}
