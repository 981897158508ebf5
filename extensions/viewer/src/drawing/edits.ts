/** Edits on their way to the document: one after the other, kept until it is known that they are saved. */
import { Away } from "../transport.ts";
import type { Change, GeoFeature } from "./features.ts";
import type { DocumentClass, LayerScene } from "../types.ts";

export interface Edit {
  /** Sent twice, because an answer got lost, it is done once. */
  key: string;
  action: "apply" | "draw" | "undo" | "redo" | "revert" | "class";
  tool?: string;
  changes?: Change[];
  path?: [number, number][];
  objects?: string[];
  [name: string]: unknown;
}

/** What the document tells of an edit, one's own or another's. */
export interface Edited {
  edit?: { clock: number; writer: string; tool: string; author: string; time: string } | null;
  changes: { object: string; feature: GeoFeature | null }[];
  classes?: DocumentClass[];
  revision: number;
  author?: string;
  told?: string;
  /** The changes are too many to be told: the shapes of the layer are packed anew. */
  reload?: boolean;
  /** The layer as it was packed anew, from a server. */
  layer?: LayerScene | number;
}

export type Saving = { state: "saved" | "saving" } | { state: "unsaved"; reason: string; count: number };

export interface EditEvents {
  send(edit: Edit): Promise<Edited>;
  answered(edit: Edit, answer: Edited): void;
  changed(): void;
}

const WAITS_MS = [500, 1000, 2000, 4000, 8000];

export class EditQueue {
  private readonly waiting: Edit[] = [];
  private refused: { edit: Edit; reason: string }[] = [];
  private away = "";
  private failures = 0;
  private running = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private closed = false;

  constructor(private readonly events: EditEvents) {}

  /** All edits that are not known to be saved, the oldest first. */
  get pending(): Edit[] {
    return [...this.refused.map(({ edit }) => edit), ...this.waiting];
  }

  get saving(): Saving {
    const reason = this.refused.at(-1)?.reason ?? this.away;
    if (reason) return { state: "unsaved", reason, count: this.pending.length };
    return { state: this.waiting.length ? "saving" : "saved" };
  }

  add(edit: Edit): void {
    this.waiting.push(edit);
    this.events.changed();
    void this.run();
  }

  /** Take over edits that were left unsaved earlier, without sending them yet. */
  adopt(edits: Edit[], reason: string): void {
    this.refused.unshift(...edits.map((edit) => ({ edit, reason })));
    this.events.changed();
  }

  /** Send everything that failed again. */
  retry(): void {
    this.waiting.unshift(...this.refused.map(({ edit }) => edit));
    this.refused = [];
    this.away = "";
    clearTimeout(this.timer);
    this.events.changed();
    void this.run();
  }

  /** Give up what failed; returns it. */
  discard(): Edit[] {
    const dropped = [...this.refused.map(({ edit }) => edit), ...(this.away ? this.waiting.splice(0) : [])];
    this.refused = [];
    this.away = "";
    this.events.changed();
    return dropped;
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
  }

  private async run(): Promise<void> {
    if (this.running) return;
    this.running = true;
    for (let edit = this.waiting[0]; edit && !this.closed; edit = this.waiting[0]) {
      const sent = edit;
      const { answer, error } = await this.events.send(sent).then(
        (answer) => ({ answer, error: null }), (error: Error) => ({ answer: null, error }),
      );
      if (this.closed) return;
      this.away = error instanceof Away ? error.message : "";
      if (this.away) {
        this.timer = setTimeout(() => void this.run(), WAITS_MS[Math.min(this.failures++, WAITS_MS.length - 1)]);
        break;
      }
      this.failures = 0;
      const at = this.waiting.indexOf(sent);
      if (at >= 0) this.waiting.splice(at, 1);
      if (error) this.refused.push({ edit: sent, reason: error.message });
      if (answer) this.events.answered(sent, answer);
      this.events.changed();
    }
    this.running = false;
    this.events.changed();
  }
}
