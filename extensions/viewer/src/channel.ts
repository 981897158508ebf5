/** Requests to the kernel: one message each way, a number on each, stale ones withdrawn. */
import type { Model } from "./types.ts";

export class Withdrawn extends Error {}

interface Reply {
  head: Record<string, unknown>;
  buffers: DataView<ArrayBuffer>[];
}
interface Waiting {
  resolve(reply: Reply): void;
  reject(error: Error): void;
}
interface Message {
  type?: string;
  view?: string;
  id?: number;
  error?: string;
}

export class Channel {
  private readonly waiting = new Map<number, Waiting>();
  private readonly view = Math.random().toString(36).slice(2);
  private last = 0;

  constructor(private readonly model: Model) {
    model.on("msg:custom", this.receive as never);
  }

  /** Send a request; the answer's buffers hold pictures or text. */
  ask(content: Record<string, unknown>): { id: number; reply: Promise<Reply> } {
    const id = ++this.last;
    const reply = new Promise<Reply>((resolve, reject) => this.waiting.set(id, { resolve, reject }));
    this.model.send({ ...content, view: this.view, id });
    return { id, reply };
  }

  /** Tell the kernel that nobody waits for these answers any more. */
  withdraw(ids: number[]): void {
    const known = ids.filter((id) => this.waiting.has(id));
    if (!known.length) return;
    this.model.send({ type: "cancel", view: this.view, ids: known });
    for (const id of known) {
      this.waiting.get(id)?.reject(new Withdrawn());
      this.waiting.delete(id);
    }
  }

  close(): void {
    this.model.off("msg:custom", this.receive as never);
    this.withdraw([...this.waiting.keys()]);
  }

  private readonly receive = (message: Message, buffers: DataView<ArrayBuffer>[]): void => {
    if (message.view !== this.view || message.id === undefined) return;
    const waiting = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error) waiting?.reject(new Error(message.error));
    else waiting?.resolve({ head: message as Record<string, unknown>, buffers });
  };
}
