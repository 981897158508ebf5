/** What is selected: its class, review, measures and comments, and what can be done with it. */
import { button, make } from "../dom.ts";
import { grouped } from "../frame.ts";
import type { DocumentClass } from "../types.ts";
import { type Comment, REVIEWS, type Review } from "./features.ts";
import { act } from "./toolbar.ts";

export interface SelectedEvents {
  classify(name: string | null): void;
  rename(name: string | null): void;
  review(state: Review | null): void;
  comment(text: string): void;
  merge(): void;
  simplify(): void;
  fill(): void;
  copy(): void;
  remove(): void;
  leave(): void;
}

export interface SelectedState {
  count: number;
  /** Class and review that all have; undefined where they differ. */
  name: string | null | undefined;
  review: Review | null | undefined;
  title: string | null;
  measures: { name: string; text: string }[];
  comments: Comment[];
  classes: DocumentClass[];
  readOnly: boolean;
}

const MIXED = "\u0000";

export class SelectedCard {
  readonly element: HTMLElement;
  private readonly heading = make("span", { class: "dhv-name" });
  private readonly classes = make("select", { "aria-label": "Class of the selection" });
  private readonly title = make("input", { type: "text", "aria-label": "Name of the object", placeholder: "none" });
  private readonly titleRow = make("label", { class: "dhv-row" }, make("span", { class: "dhv-row-name" }, "Name"), this.title);
  private readonly reviews = new Map<Review, HTMLButtonElement>();
  private readonly measures = make("dl", { class: "dhv-measures" });
  private readonly comments = make("ul", { class: "dhv-comments", "aria-label": "Comments" });
  private readonly text = make("input", { type: "text", "aria-label": "New comment", placeholder: "Comment …" });
  private readonly merge: HTMLButtonElement;
  private readonly changing: HTMLElement[];

  constructor(events: SelectedEvents) {
    const head = make("div", { class: "dhv-card-head" }, this.heading, button("Copy", "copy", events.copy, "Control+C"), button("Select nothing", "close", events.leave, "Escape"));
    this.classes.addEventListener("change", () => events.classify(this.classes.value || null));
    this.title.addEventListener("change", () => events.rename(this.title.value.trim() || null));
    const review = make("div", { class: "dhv-choice", role: "group", "aria-label": "Review" });
    for (const state of REVIEWS) {
      const one = act(state[0]!.toUpperCase() + state.slice(1), () =>
        events.review(one.getAttribute("aria-pressed") === "true" ? null : state),
      );
      this.reviews.set(state, one);
      review.append(one);
    }
    const form = make("form", { class: "dhv-line" }, this.text, make("button", { class: "dhv-again" }, "Add"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const text = this.text.value.trim();
      if (text) events.comment(text);
      this.text.value = "";
    });
    this.merge = act("Merge", events.merge, "Merge into one (J)");
    const changes = make(
      "div", { class: "dhv-line" }, this.merge, act("Simplify", events.simplify, "Leave out what is finer than the screen shows"),
      act("Fill holes", events.fill), act("Delete", events.remove, "Delete (Delete)"),
    );

    const row = make("label", { class: "dhv-row" }, make("span", { class: "dhv-row-name" }, "Class"), this.classes);
    this.changing = [review, form, changes];
    this.element = make(
      "section", { class: "dhv-selected", "aria-label": "Selection", hidden: true },
      head, row, this.titleRow, review, this.measures, this.comments, form, changes,
    );
  }

  show(state: SelectedState): void {
    this.element.hidden = !state.count;
    if (!state.count) return;
    this.heading.textContent = state.count === 1 ? "Selected" : `${grouped(state.count)} selected`;
    const options = [make("option", { value: "" }, "No class"), ...state.classes.map(({ name }) => make("option", {}, name))];
    if (state.name === undefined) options.unshift(make("option", { value: MIXED, disabled: true }, "Several"));
    if (state.name && !state.classes.some(({ name }) => name === state.name)) options.push(make("option", {}, state.name));
    this.classes.replaceChildren(...options);
    this.classes.value = state.name === undefined ? MIXED : (state.name ?? "");
    this.classes.disabled = this.title.disabled = state.readOnly;
    this.titleRow.hidden = state.count > 1;
    if (document.activeElement !== this.title) this.title.value = state.title ?? "";
    for (const [name, one] of this.reviews) one.setAttribute("aria-pressed", String(state.review === name));
    this.measures.replaceChildren(...state.measures.flatMap(({ name, text }) => [make("dt", {}, name), make("dd", {}, text)]));
    this.comments.replaceChildren(...state.comments.map(({ time, author, text }) =>
      make("li", {}, make("span", { class: "dhv-kind" }, `${author}, ${when(time)}`), make("div", {}, text)),
    ));
    this.comments.hidden = !state.comments.length;
    this.merge.disabled = state.count < 2;
    for (const part of this.changing) part.hidden = state.readOnly;
  }
}

/** A time as people say it: today's by the clock, others by the day. */
export function when(time: string): string {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return time;
  const today = at.toDateString() === new Date().toDateString();
  return at.toLocaleString(undefined, today ? { hour: "2-digit", minute: "2-digit" } : { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
}
