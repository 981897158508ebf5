/** The bar of tools over the picture: what the pointer does, undo and redo, and whether all is saved. */
import { button, make } from "../dom.ts";
import type { Saving } from "./edits.ts";
import { TOOLS, type Tool, type ToolName } from "./tools.ts";

export interface ToolBarEvents {
  pick(tool: ToolName): void;
  snap(on: boolean): void;
  undo(): void;
  redo(): void;
  retry(): void;
  discard(): void;
  size(pixels: number): void;
  tolerance(value: number): void;
}

export interface ToolBarState {
  tool: Tool;
  snap: boolean;
  saving: Saving;
  readOnly: string | null;
  size: number;
  sizeText: string;
  tolerance: number;
}

const GROUPS: ToolName[][] = [
  ["pan", "select", "edit"],
  ["point", "line", "rectangle", "ellipse", "polygon", "freehand"],
  ["brush", "eraser", "wand", "hole", "split"],
];
export const SIZES = { least: 4, most: 150 };
const SAID_MS = 8000;

export class ToolBar {
  readonly element: HTMLElement;
  private readonly tools = new Map<ToolName, HTMLButtonElement>();
  private readonly snap: HTMLButtonElement;
  private readonly undo: HTMLButtonElement;
  private readonly redo: HTMLButtonElement;
  private readonly saving = make("span", { class: "dhv-saving", role: "status" });
  private readonly fault = make("div", { class: "dhv-plate dhv-fault", role: "alert", hidden: true });
  private readonly faultText = make("span");
  private readonly said = make("div", { class: "dhv-plate dhv-said", role: "status" });
  private readonly options = make("div", { class: "dhv-plate dhv-options" });
  private readonly size = slider("Size of the brush", SIZES.least, SIZES.most);
  private readonly tolerance = slider("Tolerance of the magic wand", 1, 50);
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(events: ToolBarEvents) {
    const bar = make("div", { class: "dhv-plate dhv-drawbar", role: "toolbar", "aria-label": "Drawing" });
    for (const names of GROUPS) {
      const group = make("div", { class: "dhv-group" });
      for (const name of names) {
        const tool = TOOLS.find((one) => one.name === name)!;
        const one = button(tool.label, tool.name, () => events.pick(name), shown(tool.key));
        one.title = `${tool.does} (${shown(tool.key)})`;
        this.tools.set(name, one);
        group.append(one);
      }
      bar.append(group);
    }
    this.snap = button("Snap to neighbours", "magnet", () => events.snap(this.snap.getAttribute("aria-pressed") !== "true"), "N");
    this.undo = button("Undo", "undo", events.undo, "Control+Z");
    this.redo = button("Redo", "redo", events.redo, "Control+Shift+Z");
    bar.append(make("div", { class: "dhv-group" }, this.snap), make("div", { class: "dhv-group" }, this.undo, this.redo), this.saving);
    walk(bar);
    this.size.input.addEventListener("input", () => events.size(Number(this.size.input.value)));
    this.tolerance.input.addEventListener("input", () => events.tolerance(Number(this.tolerance.input.value)));
    this.options.append(this.size.row, this.tolerance.row);
    this.fault.append(
      this.faultText, act("Try again", events.retry), act("Give up", events.discard, "Forget what could not be saved"),
    );
    this.element = make("div", { class: "dhv-draw" }, bar, this.options, this.fault, this.said);
  }

  show({ tool, snap, saving, readOnly, size, sizeText, tolerance }: ToolBarState): void {
    for (const [name, one] of this.tools) {
      one.setAttribute("aria-pressed", String(name === tool.name));
      one.disabled = readOnly !== null && name !== "pan" && name !== "select";
    }
    this.snap.setAttribute("aria-pressed", String(snap));
    for (const one of [this.snap, this.undo, this.redo]) one.disabled = readOnly !== null;
    const brush = tool.name === "brush" || tool.name === "eraser";
    this.size.row.hidden = !brush;
    this.tolerance.row.hidden = tool.name !== "wand";
    this.options.hidden = !brush && tool.name !== "wand";
    this.size.input.value = String(size);
    this.size.output.textContent = sizeText;
    this.tolerance.input.value = this.tolerance.output.textContent = String(tolerance);
    const failed = saving.state === "unsaved";
    this.saving.dataset.state = readOnly === null ? saving.state : "read-only";
    this.saving.textContent = readOnly !== null ? "Read-only" : failed ? "Not saved" : saving.state === "saving" ? "Saving …" : "Saved";
    this.fault.hidden = !failed;
    if (failed) {
      const what = saving.count === 1 ? "One edit is not saved" : `${saving.count} edits are not saved`;
      const text = `${what}: ${saving.reason}`;
      if (this.faultText.textContent !== text) this.faultText.textContent = text;
    }
    if (readOnly !== null) this.say(`Read-only: ${readOnly}`, false);
  }

  /** Tell the person at the screen something, for a while. */
  say(text: string, passing = true): void {
    this.said.textContent = text;
    clearTimeout(this.timer);
    if (passing) this.timer = setTimeout(() => (this.said.textContent = ""), SAID_MS);
  }
}

function shown(key: string): string {
  return key.toUpperCase();
}

export function act(label: string, run: () => void, title: string | null = null): HTMLButtonElement {
  const element = make("button", { type: "button", class: "dhv-again", title }, label);
  element.addEventListener("click", run);
  return element;
}

function slider(label: string, min: number, max: number): { row: HTMLElement; input: HTMLInputElement; output: HTMLOutputElement } {
  const input = make("input", { type: "range", min, max, step: 1, "aria-label": label });
  const output = make("output", { class: "dhv-value" });
  const name = label.split(" ")[0]!;
  return { row: make("label", { class: "dhv-row" }, make("span", {}, name), input, output), input, output };
}

/** Let Tab enter a tool bar once, and the arrows walk in it. */
function walk(bar: HTMLElement): void {
  const all = [...bar.querySelectorAll("button")];
  const go = (to: number): void => {
    all.forEach((one, at) => (one.tabIndex = at === to ? 0 : -1));
  };
  go(0);
  bar.addEventListener("focusin", (event) => go(Math.max(0, all.indexOf(event.target as HTMLButtonElement))));
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const at = all.indexOf(document.activeElement as HTMLButtonElement);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    event.stopPropagation();
    for (let to = at + step; to >= 0 && to < all.length; to += step) {
      if (all[to]!.disabled) continue;
      all[to]!.focus();
      break;
    }
  });
}
