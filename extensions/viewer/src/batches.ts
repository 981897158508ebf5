/** Tiles asked for in one go travel in one answer, each as soon as it is there: a request costs a browser more than a tile. */
import { ServerError } from "./server.ts";

/** Number of the tile within the request, status, kind and size, before each tile's bytes. */
const HEAD_BYTES = 16;
const KINDS = ["application/json", "image/jpeg", "image/png"];
const MOST = 64;

interface Wanted {
  place: string;
  signal: AbortSignal;
  resolve(tile: Blob): void;
  reject(error: Error): void;
}

export class Batches {
  private readonly gathering = new Map<string, Wanted[]>();

  /** `get` asks for several places at once, `level.row.column` each, of what `key` stands for. */
  constructor(private readonly get: (key: string, places: string[], signal: AbortSignal) => Promise<Response>) {}

  ask(key: string, place: string, signal: AbortSignal): Promise<Blob> {
    return new Promise((resolve, reject) => {
      if (signal.aborted) return reject(signal.reason as Error);
      const leave = (): void => reject(signal.reason as Error);
      signal.addEventListener("abort", leave, { once: true });
      const done = (): void => signal.removeEventListener("abort", leave);
      const wanted: Wanted = {
        place,
        signal,
        resolve: (tile) => (done(), resolve(tile)),
        reject: (error) => (done(), reject(error)),
      };
      const gathered = this.gathering.get(key);
      if (gathered && gathered.length < MOST) {
        gathered.push(wanted);
        return;
      }
      const batch = [wanted];
      this.gathering.set(key, batch);
      setTimeout(() => {
        if (this.gathering.get(key) === batch) this.gathering.delete(key);
        void this.send(key, batch);
      }, 0);
    });
  }

  private async send(key: string, batch: Wanted[]): Promise<void> {
    const asked = batch.filter(({ signal }) => !signal.aborted);
    if (!asked.length) return;
    const controller = new AbortController();
    // One that stays keeps the request alive.
    const look = (): void => {
      if (asked.every(({ signal }) => signal.aborted)) controller.abort();
    };
    for (const { signal } of asked) signal.addEventListener("abort", look, { once: true });
    try {
      const answer = await this.get(key, asked.map(({ place }) => place), controller.signal);
      await receive(answer, asked);
      throw new ServerError(0, "the Jupyter server broke off in the middle of an answer. Is it still running?");
    } catch (error) {
      // Those that have their tile do not hear of it.
      for (const { reject } of asked) reject(error as Error);
    } finally {
      for (const { signal } of asked) signal.removeEventListener("abort", look);
    }
  }
}

/** Hand out the tiles of an answer as they come in. */
async function receive(answer: Response, asked: Wanted[]): Promise<void> {
  const reader = answer.body!.getReader();
  let held = new Uint8Array(0);
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    held = joined(held, part.value);
    for (let size = frameSize(held); size <= held.length; size = frameSize(held)) {
      hand(held.subarray(0, size), asked);
      held = held.slice(size);
    }
  }
}

function joined(one: Uint8Array<ArrayBuffer>, other: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(one.length + other.length);
  both.set(one);
  both.set(other, one.length);
  return both;
}

function frameSize(bytes: Uint8Array<ArrayBuffer>): number {
  if (bytes.length < HEAD_BYTES) return Infinity;
  return HEAD_BYTES + new DataView(bytes.buffer, bytes.byteOffset).getUint32(12, true);
}

function hand(frame: Uint8Array<ArrayBuffer>, asked: Wanted[]): void {
  const head = new DataView(frame.buffer, frame.byteOffset);
  const [number, status, kind] = [0, 4, 8].map((at) => head.getUint32(at, true)) as [number, number, number];
  const body = frame.slice(HEAD_BYTES);
  const wanted = asked[number];
  if (status === 200) wanted?.resolve(new Blob([body], { type: KINDS[kind]! }));
  else wanted?.reject(new ServerError(status, (JSON.parse(new TextDecoder().decode(body)) as { message: string }).message));
}
