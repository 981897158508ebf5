/** Requests to the kernel over the widget's own connection: one message each way, stale ones withdrawn. */
import {
  Away, type EditRequest, type Follower, type Reply, type ShapesRequest, type TileRequest, type Transport, type ValuesRequest,
} from "./transport.ts";
import type { Model } from "./types.ts";

interface Waiting {
  resolve(reply: Reply): void;
  reject(error: Error): void;
}
interface Message {
  type?: string;
  view?: string;
  id?: number;
  error?: string;
  /** Answers that were ready together, each with the number of its buffers. */
  answers?: (Message & { buffers: number })[];
}

export class Channel {
  private readonly waiting = new Map<number, Waiting>();
  private readonly view = Math.random().toString(36).slice(2);
  private stale: number[] = [];
  private asked: object[] = [];
  private last = 0;

  constructor(private readonly model: Model) {
    model.on("msg:custom", this.receive as never);
  }

  /** Send a request; the answer's buffers hold pictures or numbers. */
  ask(content: object, signal: AbortSignal): Promise<Reply> {
    signal.throwIfAborted();
    const id = ++this.last;
    return new Promise<Reply>((resolve, reject) => {
      const withdraw = (): void => {
        this.waiting.delete(id);
        this.withdraw(id);
        reject(signal.reason as Error);
      };
      const done = (): void => signal.removeEventListener("abort", withdraw);
      this.waiting.set(id, {
        resolve: (reply) => (done(), resolve(reply)),
        reject: (error) => (done(), reject(error)),
      });
      signal.addEventListener("abort", withdraw, { once: true });
      this.send({ ...content, view: this.view, id });
    });
  }

  /** Send a request, together with all that are made in the same go: a message costs more than a tile. */
  private send(request: object): void {
    if (this.asked.push(request) > 1) return;
    queueMicrotask(() => {
      const { asked } = this;
      this.asked = [];
      try {
        this.model.send(asked.length === 1 ? asked[0] : { type: "several", view: this.view, requests: asked });
      } catch (error) {
        const reason = new Away(`the kernel cannot be reached (${(error as Error).message})`);
        for (const { id } of asked as { id: number }[]) {
          this.waiting.get(id)?.reject(reason);
          this.waiting.delete(id);
        }
      }
    });
  }

  close(): void {
    this.model.off("msg:custom", this.receive as never);
    for (const id of this.waiting.keys()) this.withdraw(id);
    this.waiting.clear();
  }

  /** Tell the kernel, once for all that go stale together, that nobody waits for these answers any more. */
  private withdraw(id: number): void {
    if (this.stale.push(id) > 1) return;
    queueMicrotask(() => {
      const ids = this.stale;
      this.stale = [];
      try {
        this.model.send({ type: "cancel", view: this.view, ids });
      } catch {
        // A kernel that has gone works at nothing.
      }
    });
  }

  private readonly receive = (message: Message, buffers: DataView<ArrayBuffer>[]): void => {
    let first = 0;
    for (const answer of message.answers ?? []) this.receive(answer, buffers.slice(first, (first += answer.buffers)));
    if (message.view !== this.view || message.id === undefined) return;
    const waiting = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error) waiting?.reject(new Error(message.error));
    else waiting?.resolve({ head: message as Record<string, unknown>, buffers });
  };
}

const LOST = "the kernel was restarted or has gone";
// Of a kernel that was lost and may be back.
const PATIENCE_MS = 4000;

export class CommTransport implements Transport {
  private readonly channel: Channel;
  private readonly edits = new Set<(error: Error) => void>();
  private lost = false;

  constructor(private readonly model: Model) {
    this.channel = new Channel(model);
    model.on("comm_live_update", this.lose as never);
  }

  async tile(request: TileRequest, signal: AbortSignal): Promise<Blob> {
    const { head, buffers } = await this.channel.ask({ type: "tile", ...request }, signal);
    return new Blob([buffers[0]!], { type: head.mime as string });
  }

  shapes(request: ShapesRequest, signal: AbortSignal): Promise<Reply> {
    return this.channel.ask({ type: "shapes", ...request }, signal);
  }

  async values(request: ValuesRequest, signal: AbortSignal): Promise<(number | null)[]> {
    const { head } = await this.channel.ask({ type: "values", ...request }, signal);
    return head.values as (number | null)[];
  }

  /** A kernel that has gone answers nothing: whoever waits must hear of it. */
  edit(request: EditRequest, signal: AbortSignal): Promise<Record<string, unknown>> {
    return new Promise((resolve, reject) => {
      const timer = this.lost ? setTimeout(() => reject(new Away(LOST)), PATIENCE_MS) : undefined;
      this.edits.add(reject);
      this.channel.ask({ type: "edit", ...request }, signal).then(({ head }) => {
        this.lost = false;
        resolve(head);
      }, reject).finally(() => {
        clearTimeout(timer);
        this.edits.delete(reject);
      });
    });
  }

  follow({ layer, revision, tell }: Follower, signal: AbortSignal): void {
    const hear = (message: Record<string, unknown>): void => {
      if (message.type === "edited" && message.layer === layer) tell(message);
    };
    this.model.on("msg:custom", hear as never);
    signal.addEventListener("abort", () => this.model.off("msg:custom", hear as never), { once: true });
    // What was done before this page listened.
    this.edit({ layer, action: "changes", since: revision() }, signal).then(tell, () => undefined);
  }

  close(): void {
    this.model.off("comm_live_update", this.lose as never);
    this.channel.close();
  }

  private readonly lose = (): void => {
    this.lost = true;
    for (const reject of this.edits) reject(new Away(LOST));
    this.edits.clear();
  };
}
