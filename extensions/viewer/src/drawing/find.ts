/** Find objects by class, review, author, text and size, and select them together. */
import { make, row } from "../dom.ts";
import type { DocumentClass } from "../types.ts";
import { REVIEWS } from "./features.ts";
import { act } from "./toolbar.ts";

export interface FindEvents {
  /** Square level-0 pixels of an area in `unit`. */
  pixels(area: number): number;
  extent(): [number, number, number, number];
  find(filter: Record<string, unknown>): Promise<number>;
}

const ANY = "";
const NONE = "-";

export class FindCard {
  readonly element: HTMLDetailsElement;
  private readonly name = make("select", { "aria-label": "Class to find" });
  private readonly review = make("select", { "aria-label": "Review to find" }, make("option", { value: ANY }, "any"));
  private readonly author = make("input", { type: "text", "aria-label": "Author to find", placeholder: "anybody" });
  private readonly text = make("input", { type: "text", "aria-label": "Text to find", placeholder: "in name and comments" });
  private readonly least = make("input", { type: "number", min: 0, step: "any", "aria-label": "Least area to find", placeholder: "least" });
  private readonly most = make("input", { type: "number", min: 0, step: "any", "aria-label": "Largest area to find", placeholder: "most" });
  private readonly near = make("input", { type: "checkbox" });
  private readonly note = make("p", { class: "dhv-note", role: "status" });

  constructor(private readonly events: FindEvents, unit: string) {
    for (const state of REVIEWS) this.review.append(make("option", {}, state));
    const form = make(
      "form", {}, row("Class", this.name), row("Review", this.review), row("Author", this.author), row("Text", this.text),
      make("div", { class: "dhv-row" }, make("span", { class: "dhv-row-name" }, `Area ${unit}`), this.least, this.most),
      make("label", { class: "dhv-row" }, this.near, make("span", {}, "In view only")),
      make("div", { class: "dhv-line" }, make("button", { class: "dhv-again" }, "Select")), this.note,
    );
    form.querySelector(".dhv-line")!.append(act("Clear", () => {
      form.reset();
      this.note.textContent = "";
    }));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.find();
    });
    this.element = make("details", { class: "dhv-card dhv-find" }, make("summary", {}, "Find"), form);
  }

  show(classes: DocumentClass[]): void {
    const { value } = this.name;
    const options = classes.map(({ name }) => make("option", { value: `=${name}` }, name));
    this.name.replaceChildren(make("option", { value: ANY }, "any"), ...options, make("option", { value: NONE }, "No class"));
    this.name.value = value;
    if (this.name.selectedIndex < 0) this.name.value = ANY;
  }

  private async find(): Promise<void> {
    const area = ({ value }: HTMLInputElement): number | undefined => (value === "" ? undefined : this.events.pixels(Number(value)));
    const filter: Record<string, unknown> = {
      class: this.name.value === ANY ? undefined : this.name.value === NONE ? null : this.name.value.slice(1),
      review: this.review.value === ANY ? undefined : this.review.value,
      author: this.author.value.trim() || undefined, text: this.text.value.trim() || undefined,
      min_area: area(this.least), max_area: area(this.most), extent: this.near.checked ? this.events.extent() : undefined,
    };
    for (const key of Object.keys(filter)) if (filter[key] === undefined) delete filter[key];
    try {
      const count = await this.events.find(filter);
      this.note.textContent = count ? `${count} selected.` : "There is none.";
    } catch (error) {
      this.note.textContent = (error as Error).message;
    }
  }
}
