/** A slide in a tab: asks the server to open it, shows it, and remembers where one was. */
import type { ServiceManager } from "@jupyterlab/services";
import type { IStateDB } from "@jupyterlab/statedb";
import type { ReadonlyPartialJSONObject } from "@lumino/coreutils";
import type { Message } from "@lumino/messaging";
import { Widget } from "@lumino/widgets";
import type { ViewerView } from "../../viewer/src/view.ts";
import { besides } from "./besides.ts";

export interface SlidePanelOptions {
  path: string;
  services: ServiceManager.IManager;
  state: IStateDB | null;
}

// Another file at this path has other layers: only what means the same for all is kept.
const KEPT = ["center", "zoom", "rotation", "index", "settings"];

export class SlidePanel extends Widget {
  path: string;
  private kept: Record<string, unknown> | undefined;
  private view: ViewerView | undefined;
  /** Which attempt to open it is; one that was overtaken shows nothing. */
  private turn = 0;

  constructor(private readonly options: SlidePanelOptions) {
    super();
    this.path = options.path;
    this.addClass("dhlab-slide");
    this.node.tabIndex = -1;
  }

  /** Follow a file that got another name, with the place where one was. */
  move(path: string): void {
    this.path = path;
    this.remember();
    void this.open();
  }

  override dispose(): void {
    this.view?.close();
    super.dispose();
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    if (!this.view && !this.node.childElementCount) void this.open();
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    (this.node.querySelector<HTMLElement>(".dhv-stage") ?? this.node).focus();
  }

  private remember(): void {
    if (this.kept) void this.options.state?.save(this.key, this.kept as ReadonlyPartialJSONObject);
  }

  private get focused(): boolean {
    return this.node.contains(document.activeElement);
  }

  private get key(): string {
    return `dhlab-view:${this.path}`;
  }

  private async open(): Promise<void> {
    const { services, state } = this.options;
    const { path } = this;
    const turn = ++this.turn;
    const focused = this.focused;
    this.view?.close();
    this.view = undefined;
    this.tell("status", `Opening ${path} …`);
    try {
      const annotations = besides(services.contents, path);
      const [{ openSlide }, stored] = await Promise.all([
        import("./slide.ts"),
        state?.fetch(this.key) as Promise<Record<string, unknown> | undefined>,
      ]);
      const save = (model: { get(name: string): unknown }): void => {
        this.kept = Object.fromEntries(KEPT.map((name) => [name, model.get(name)]));
        this.remember();
      };
      const kept = this.kept ?? stored ?? {};
      const opened = await openSlide({ path, services, annotations, kept, save, reopen: () => void this.open() });
      if (this.isDisposed || turn !== this.turn) return;
      const active = focused || this.focused;
      this.node.replaceChildren();
      this.view = opened(this.node);
      if (active) this.activate();
    } catch (error) {
      if (turn === this.turn) this.tell("alert", `${path}: ${(error as Error).message}`);
    }
  }

  private tell(role: "status" | "alert", text: string): void {
    const note = document.createElement("p");
    note.className = "dhlab-note";
    note.setAttribute("role", role);
    note.textContent = text;
    this.node.replaceChildren(note);
    if (role !== "alert") return;
    const again = Object.assign(document.createElement("button"), { textContent: "Try again", className: "jp-mod-styled" });
    again.addEventListener("click", () => void this.open());
    note.append(again);
  }
}
