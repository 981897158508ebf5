/** Where the pictures and shapes of a viewer come from, whatever carries them. */
export interface TileRequest {
  layer: number;
  /** Which of the things that the layer showed one after the other. */
  revision: number;
  level: number;
  row: number;
  column: number;
  style: Record<string, unknown>;
  index: Record<string, number>;
}

/** Outlines of some cells of a layer of shapes; without cells, where all of its shapes are. */
export interface ShapesRequest {
  layer: number;
  revision: number;
  cells?: number[];
}

/** The stored values of one level-0 pixel of a layer. */
export interface ValuesRequest {
  layer: number;
  y: number;
  x: number;
  index: Record<string, number>;
}

/** What is asked of a document; the further fields depend on the action. */
export interface EditRequest {
  /** Whether it is about what a document teaches; only a kernel learns. */
  type?: "edit" | "learn";
  layer: number;
  action: string;
  [name: string]: unknown;
}

/** Whoever wants to hear of edits that were made elsewhere. */
export interface Follower {
  layer: number;
  /** The last revision that it knows. */
  revision(): number;
  tell(news: Record<string, unknown>): void;
}

export interface Reply {
  head: Record<string, unknown>;
  buffers: DataView<ArrayBuffer>[];
}

/** A request whose signal is aborted rejects with the signal's reason. */
export interface Transport {
  tile(request: TileRequest, signal: AbortSignal): Promise<Blob>;
  shapes(request: ShapesRequest, signal: AbortSignal): Promise<Reply>;
  values(request: ValuesRequest, signal: AbortSignal): Promise<(number | null)[]>;
  /** An answer means that it is saved. */
  edit(request: EditRequest, signal: AbortSignal): Promise<Record<string, unknown>>;
  follow(follower: Follower, signal: AbortSignal): void;
  close(): void;
}

/** This transport cannot serve the layer at all; another one may. */
export class Refused extends Error {}

/** Nobody answers at present; the same may be asked again. */
export class Away extends Error {}

/** The server's own way for layers that it can open, the kernel's connection for all others. */
export class FirstOf implements Transport {
  private readonly refused = new Set<number>();

  constructor(private readonly first: Transport, private readonly second: Transport) {}

  tile(request: TileRequest, signal: AbortSignal): Promise<Blob> {
    return this.ask(request.layer, (transport) => transport.tile(request, signal));
  }

  shapes(request: ShapesRequest, signal: AbortSignal): Promise<Reply> {
    return this.ask(request.layer, (transport) => transport.shapes(request, signal));
  }

  values(request: ValuesRequest, signal: AbortSignal): Promise<(number | null)[]> {
    return this.ask(request.layer, (transport) => transport.values(request, signal));
  }

  /** A document that a kernel shows is the kernel's. */
  edit(request: EditRequest, signal: AbortSignal): Promise<Record<string, unknown>> {
    return this.second.edit(request, signal);
  }

  follow(follower: Follower, signal: AbortSignal): void {
    this.second.follow(follower, signal);
  }

  close(): void {
    this.first.close();
    this.second.close();
  }

  private async ask<T>(layer: number, act: (transport: Transport) => Promise<T>): Promise<T> {
    if (!this.refused.has(layer)) {
      try {
        return await act(this.first);
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        this.refused.add(layer);
      }
    }
    return act(this.second);
  }
}
