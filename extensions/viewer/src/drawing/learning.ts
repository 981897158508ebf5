/** Live learning: what the drawn strokes teach, where to draw next, and what can be made of it. */
import { make, swatch } from "../dom.ts";
import { grouped } from "../frame.ts";
import type { Rgb } from "../types.ts";
import { act } from "./toolbar.ts";

/** As the viewer's trait of this name tells it. */
export interface Learned {
  state: "off" | "starting" | "waiting" | "training" | "ready" | "applying";
  message: string;
  /** How much of the slide is mapped, from 0 to 1. */
  progress: number;
  /** Number of strokes of every class. */
  strokes: Record<string, number>;
  layer: number | null;
}

export const NOT_LEARNING: Learned = { state: "off", message: "", progress: 0, strokes: {}, layer: null };

export type LearnAction = "start" | "stop" | "next" | "apply" | "cancel" | "polygons";

export interface LearningEvents {
  learn(action: LearnAction): Promise<unknown>;
  color(name: string): Rgb;
}

const SAID: Record<Learned["state"], string> = {
  off: "", starting: "Starting a kernel …", waiting: "Waiting for strokes", training: "Learning …", ready: "Up to date", applying: "Mapping the slide …",
};

const ASKED: Partial<Record<LearnAction, string>> = { next: "Looking for a place …", polygons: "Outlining …" };

export class LearningCard {
  readonly element: HTMLElement;
  private readonly start = act(
    "Learn from what is drawn", () => void this.learn("start"), "Draw some of two classes or more: the slide is mapped while you draw",
  );
  private readonly state = make("div", { class: "dhv-learning-state", role: "status" });
  private readonly message = make("p", { class: "dhv-note", role: "status" });
  private readonly strokes = make("ul", { class: "dhv-classes", "aria-label": "Strokes of every class" });
  private readonly progress = make("progress", { max: 1, "aria-label": "How much of the slide is mapped" });
  private readonly next = act("Next place", () => void this.learn("next"), "Go where it is least sure (G)");
  private readonly apply = act("Whole slide", () => void this.learn("apply"), "Map the whole slide in the background");
  private readonly polygons = act("To polygons", () => void this.learn("polygons"), "Outline the classes, as proposals to accept or reject");
  private readonly cancel = act("Cancel", () => void this.learn("cancel"));
  private readonly stop = act("Stop", () => void this.learn("stop"), "Stop learning; what is drawn stays");
  private readonly on: HTMLElement;
  private fault = "";
  /** What was asked for last and is not done yet. */
  private asked: LearnAction | null = null;
  private last: { learned: Learned; readOnly: boolean } | undefined;

  constructor(private readonly events: LearningEvents) {
    const steps = make("div", { class: "dhv-line" }, this.next, this.polygons, this.apply, this.cancel, this.stop);
    this.on = make("div", {}, this.state, this.strokes, this.progress, steps);
    this.element = make("section", { class: "dhv-learning", "aria-label": "Live learning" }, this.start, this.on, this.message);
  }

  show(learned: Learned, readOnly: boolean): void {
    this.last = { learned, readOnly };
    const { state, message, progress, strokes } = learned;
    const off = state === "off";
    this.on.hidden = off;
    this.start.hidden = !off;
    this.start.disabled = this.asked === "start";
    this.state.dataset.state = this.asked && state === "ready" ? "training" : state;
    const said = (state === "ready" && this.asked && ASKED[this.asked]) || SAID[state];
    if (this.state.textContent !== said) this.state.textContent = said;
    const entries = Object.entries(strokes).sort(([one], [other]) => one.localeCompare(other));
    this.strokes.replaceChildren(...entries.map(([name, count]) => make(
      "li", {}, swatch(this.events.color(name)), make("span", { class: "dhv-name" }, name), make("span", { class: "dhv-kind" }, grouped(count)),
    )));
    this.progress.value = progress;
    this.progress.hidden = this.cancel.hidden = state !== "applying";
    this.apply.hidden = state === "applying";
    for (const one of [this.next, this.apply, this.polygons]) one.disabled = state !== "ready" || this.asked !== null;
    this.polygons.disabled ||= readOnly;
    const text = this.fault || message;
    if (this.message.textContent !== text) this.message.textContent = text;
    this.message.hidden = !text;
  }

  async learn(action: LearnAction): Promise<void> {
    this.fault = "";
    this.asked = action;
    this.refresh();
    await this.events.learn(action).catch((error: Error) => (this.fault = error.message));
    this.asked = null;
    this.refresh();
  }

  private refresh(): void {
    if (this.last) this.show(this.last.learned, this.last.readOnly);
  }
}
