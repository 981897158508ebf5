/** Tiles that were fetched lately, up to a number of bytes; who asks for a tile that is on its way waits for that one. */
import type { EditRequest, Follower, Reply, ShapesRequest, TileRequest, Transport, ValuesRequest } from "./transport.ts";

interface Coming {
  tile: Promise<Blob>;
  controller: AbortController;
  waiting: number;
}

export class CachedTransport implements Transport {
  private readonly kept = new Map<string, Blob>();
  private readonly coming = new Map<string, Coming>();
  private used = 0;

  constructor(private readonly inner: Transport, private readonly budget = 64 << 20) {}

  async tile(request: TileRequest, signal: AbortSignal): Promise<Blob> {
    const key = JSON.stringify(request);
    const found = this.kept.get(key);
    if (found) {
      this.kept.delete(key);
      this.kept.set(key, found);
      return found;
    }
    const coming = this.coming.get(key) ?? this.start(key, request);
    coming.waiting += 1;
    let leave = (): void => undefined;
    const left = new Promise<never>((_, reject) => {
      leave = () => {
        coming.waiting -= 1;
        if (coming.waiting === 0) {
          this.coming.delete(key);
          coming.controller.abort();
        }
        reject(signal.reason as Error);
      };
      if (signal.aborted) leave();
      signal.addEventListener("abort", leave, { once: true });
    });
    return Promise.race([coming.tile, left]).finally(() => signal.removeEventListener("abort", leave));
  }

  shapes(request: ShapesRequest, signal: AbortSignal): Promise<Reply> {
    return this.inner.shapes(request, signal);
  }

  values(request: ValuesRequest, signal: AbortSignal): Promise<(number | null)[]> {
    return this.inner.values(request, signal);
  }

  edit(request: EditRequest, signal: AbortSignal): Promise<Record<string, unknown>> {
    return this.inner.edit(request, signal);
  }

  follow(follower: Follower, signal: AbortSignal): void {
    this.inner.follow(follower, signal);
  }

  close(): void {
    for (const { controller } of this.coming.values()) controller.abort();
    this.kept.clear();
    this.inner.close();
  }

  private start(key: string, request: TileRequest): Coming {
    const controller = new AbortController();
    const tile = this.inner.tile(request, controller.signal).then((blob) => {
      this.keep(key, blob);
      return blob;
    });
    const coming = { tile, controller, waiting: 0 };
    this.coming.set(key, coming);
    const done = (): void => {
      if (this.coming.get(key) === coming) this.coming.delete(key);
    };
    tile.then(done, done);
    return coming;
  }

  private keep(key: string, blob: Blob): void {
    this.kept.set(key, blob);
    this.used += blob.size;
    for (const [oldest, tile] of this.kept) {
      if (this.used <= this.budget) break;
      this.kept.delete(oldest);
      this.used -= tile.size;
    }
  }
}
