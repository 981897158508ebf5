/** The classes of a document: which one new shapes get, their colours and keys, and whether they are seen. */
import { button, icon, make, swatch } from "../dom.ts";
import { fromHex, toHex } from "../panel.ts";
import type { DocumentClass, Rgb } from "../types.ts";
import { act } from "./toolbar.ts";

export interface ClassEvents {
  pick(name: string | null): void;
  hide(name: string, hidden: boolean): void;
  /** Add a class, or change the one of the name `before`. */
  save(changed: DocumentClass, before: string | null): void;
  remove(name: string, to: string | null): void;
  /** How many objects are of a class. */
  count(name: string): Promise<number>;
}

export interface ClassState {
  classes: DocumentClass[];
  active: string | null;
  readOnly: boolean;
  isHidden(name: string): boolean;
}

const KEYS = "123456789";
// Colours that people with any colour vision tell apart (Okabe and Ito 2008), in the order of use.
const COLORS: Rgb[] = [[213, 94, 0], [0, 114, 178], [0, 158, 115], [204, 121, 167], [230, 159, 0], [86, 180, 233], [240, 228, 66]];

export class ClassList {
  readonly element = make("div", { class: "dhv-classlist" });
  private readonly list = make("ul", { class: "dhv-classes", "aria-label": "Classes" });
  private readonly more: HTMLButtonElement;
  private state: ClassState = { classes: [], active: null, readOnly: true, isHidden: () => false };
  /** The class that is being changed; "" for a new one. */
  private editing: string | null = null;
  private shown = "";

  constructor(private readonly events: ClassEvents) {
    this.more = act("Add a class", () => this.edit(""));
    this.element.append(this.list, this.more);
  }

  show(state: ClassState): void {
    this.state = state;
    const key = JSON.stringify([state.classes, state.active, state.readOnly, this.editing, state.classes.map(({ name }) => state.isHidden(name))]);
    if (key === this.shown) return;
    this.shown = key;
    const focused = this.list.contains(document.activeElement) ? (document.activeElement as HTMLElement).dataset.focus : undefined;
    const rows = state.classes.map((one) => (one.name === this.editing ? this.editor(one) : this.row(one)));
    if (this.editing === "") rows.push(this.editor(null));
    this.list.replaceChildren(this.row(null), ...rows);
    this.more.hidden = state.readOnly || this.editing === "";
    if (focused) this.list.querySelector<HTMLElement>(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  private edit(name: string | null): void {
    this.editing = name;
    this.show(this.state);
    this.list.querySelector<HTMLInputElement>("input[type=text]")?.focus();
  }

  private row(one: DocumentClass | null): HTMLElement {
    const { active, readOnly, isHidden } = this.state;
    const name = one?.name ?? "No class";
    const pick = make(
      "button", {
        type: "button", class: "dhv-class", "aria-pressed": String((one?.name ?? null) === active), "data-focus": `pick ${name}`,
        title: `Draw ${name}, and make what is selected ${name}`,
      },
      swatch(one?.color ?? [117, 117, 117]), make("span", { class: "dhv-name" }, name),
    );
    if (one?.shortcut) pick.append(make("kbd", {}, one.shortcut));
    pick.addEventListener("click", () => this.events.pick(one?.name ?? null));
    const row = make("li", {}, pick);
    if (!one) return row;
    const seen = make("input", { type: "checkbox", class: "dhv-eye", "aria-label": `Show ${name}`, "data-focus": `show ${name}` });
    seen.checked = !isHidden(name);
    seen.addEventListener("change", () => this.events.hide(name, !seen.checked));
    const eye = make("label", { class: "dhv-eye-label" }, seen, icon("eye"));
    row.prepend(eye);
    if (!readOnly) {
      const change = button(`Change the class ${name}`, "pen", () => this.edit(name));
      change.dataset.focus = `change ${name}`;
      row.append(change);
    }
    return row;
  }

  private editor(one: DocumentClass | null): HTMLElement {
    const { classes } = this.state;
    const name = make("input", { type: "text", value: one?.name ?? "", placeholder: "Name", "aria-label": "Name of the class", "data-focus": "name" });
    const free = COLORS.find((color) => !classes.some((other) => other.color.join() === color.join())) ?? COLORS[0]!;
    const color = make("input", { type: "color", class: "dhv-color", value: toHex(one?.color ?? free), "aria-label": "Colour of the class" });
    const taken = classes.filter((other) => other !== one).map(({ shortcut }) => shortcut);
    const key = make("select", { "aria-label": "Key of the class", title: "Key" }, make("option", { value: "" }, "no key"));
    for (const digit of KEYS) if (!taken.includes(digit)) key.append(make("option", { value: digit }, digit));
    key.value = one ? (one.shortcut ?? "") : ([...KEYS].find((digit) => !taken.includes(digit)) ?? "");
    const problem = make("p", { class: "dhv-note", role: "alert" });
    const save = (): void => {
      const wanted = name.value.trim();
      if (!wanted || classes.some((other) => other !== one && other.name === wanted)) {
        problem.textContent = wanted ? `There is a class ${wanted} already.` : "Give it a name.";
        return;
      }
      this.edit(null);
      this.events.save({ name: wanted, color: fromHex(color.value), shortcut: key.value || null }, one?.name ?? null);
    };
    const form = make("form", { class: "dhv-class-editor" }, make("div", { class: "dhv-line" }, color, name, key));
    const actions = make("div", { class: "dhv-line" }, make("button", { class: "dhv-again" }, one ? "Change" : "Add"), act("Cancel", () => this.edit(null)));
    if (one) actions.append(act("Remove", () => void this.askRemove(one, actions, problem)));
    form.append(actions, problem);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      save();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.edit(null);
    });
    return make("li", {}, form);
  }

  /** A class that is in use is removed together with what its objects become. */
  private async askRemove({ name }: DocumentClass, actions: HTMLElement, problem: HTMLElement): Promise<void> {
    const remove = (to: string | null): void => {
      this.edit(null);
      this.events.remove(name, to);
    };
    const count = await this.events.count(name).catch(() => 0);
    if (!count) return remove(null);
    const others = this.state.classes.filter((one) => one.name !== name);
    if (!others.length) {
      problem.textContent = `${count} objects are of this class. Delete them first, or add a class for them.`;
      return;
    }
    const to = make("select", { "aria-label": `What becomes of the objects of ${name}` }, ...others.map((one) => make("option", {}, one.name)));
    problem.textContent = `${count === 1 ? "One object becomes" : `${count} objects become`}:`;
    actions.replaceChildren(to, act("Remove", () => remove(to.value)), act("Cancel", () => this.edit(null)));
    to.focus();
  }
}
