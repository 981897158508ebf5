/** Edits that wait to be saved, kept by the browser's tab: a page that is loaded anew, or a cell run again, finds them. */
import type { Edit } from "./edits.ts";
import { newId } from "./features.ts";

const PREFIX = "dhlab-unsent:";
// Views on this page that are open: what they wait for is theirs. Each bundle has its own copy of this file.
const ALIVE = Symbol.for("dhlab.viewer.documents");
const page = globalThis as unknown as Record<symbol, Set<string> | undefined>;
const alive = (page[ALIVE] ??= new Set());

export class Unsent {
  private readonly key: string;

  constructor(private readonly document: string) {
    this.key = `${PREFIX}${document}:${newId()}`;
    alive.add(this.key);
  }

  /** Keep these edits, and no others, for a view to come. */
  keep(edits: Edit[]): void {
    try {
      if (edits.length) sessionStorage.setItem(this.key, JSON.stringify(edits));
      else sessionStorage.removeItem(this.key);
    } catch {
      // Storage is full or forbidden: they are still kept by this view.
    }
  }

  /** Take over what closed views of the same document could not save. */
  take(): Edit[] {
    try {
      const left = Object.keys(sessionStorage).filter((key) => key.startsWith(`${PREFIX}${this.document}:`) && !alive.has(key));
      const edits = left.flatMap((key) => JSON.parse(sessionStorage.getItem(key)!) as Edit[]);
      for (const key of left) sessionStorage.removeItem(key);
      return edits;
    } catch {
      return [];
    }
  }

  close(): void {
    alive.delete(this.key);
  }
}
