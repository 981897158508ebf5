/** Tiles from the Jupyter server, below its own address and login: a token binds each layer to its file. */
import { Batches } from "./batches.ts";
import { type Server, ServerError } from "./server.ts";
import {
  Away, type EditRequest, type Follower, Refused, type Reply, type ShapesRequest, type TileRequest, type Transport, type ValuesRequest,
} from "./transport.ts";
import type { LayerScene, LayerSource } from "./types.ts";

export interface Opened {
  token: string;
  expires: number;
  layer: LayerScene;
}

// The token has run out, the server was started anew, or the file was replaced: asked again it tells which.
const ASK_AGAIN = [403, 410];
const BUSY = 503;
// Nothing of the server's own: it is down, or a proxy before it answers in its place.
const AWAY = [0, 502, 504];
// It would fail again.
const FAILED = 500;
const WAITS_MS = [250, 500, 1000, 2000];

export class HttpTransport implements Transport {
  /** One for each file, whatever layers show it. */
  private readonly tokens = new Map<string, Promise<string>>();
  private readonly batches = new Batches((key, places, signal) => {
    const [layer, style] = JSON.parse(key) as [number, Record<string, unknown>];
    return this.get(layer, (token) => `dhlab/tiles/${token}${query({ at: places.join(), ...style })}`, signal);
  });

  constructor(
    private readonly server: Server,
    private readonly sourceOf: (layer: number) => LayerSource | null,
  ) {}

  /** Open a file on the server and say what is in it. */
  async open(source: LayerSource): Promise<LayerScene> {
    const opened = await this.server.post<Opened>("dhlab/scans", source);
    // A document is not one state of a file.
    const layer = { ...opened.layer, source: source.document ? source : (opened.layer.source ?? source) };
    this.tokens.set(JSON.stringify(layer.source), Promise.resolve(opened.token));
    return layer;
  }

  async tile(request: TileRequest, signal: AbortSignal): Promise<Blob> {
    const { layer, level, row, column, style, index } = request;
    const key = JSON.stringify([layer, { ...style, ...index }]);
    return patiently(() => this.batches.ask(key, `${level}.${row}.${column}`, signal), signal);
  }

  async shapes({ layer, cells, revision }: ShapesRequest, signal: AbortSignal): Promise<Reply> {
    // One state of a file has one token, a document keeps its own.
    const asked = query(this.sourceOf(layer)?.document ? { cells, revision } : { cells });
    const answer = await this.get(layer, (token) => `dhlab/shapes/${token}${asked}`, signal);
    return { head: {}, buffers: [new DataView(await answer.arrayBuffer())] };
  }

  async values({ layer, y, x, index }: ValuesRequest, signal: AbortSignal): Promise<(number | null)[]> {
    const answer = await this.get(layer, (token) => `dhlab/values/${token}${query({ y, x, ...index })}`, signal);
    return ((await answer.json()) as { values: (number | null)[] }).values;
  }

  async edit({ layer, ...request }: EditRequest, signal: AbortSignal): Promise<Record<string, unknown>> {
    try {
      return await this.withToken(layer, (token) => this.server.post(`dhlab/documents/${token}`, { type: "edit", ...request }, signal));
    } catch (error) {
      const later = error instanceof Refused || (error instanceof ServerError && [BUSY, ...AWAY].includes(error.status));
      throw later ? new Away(error.message) : error;
    }
  }

  follow(follower: Follower, signal: AbortSignal): void {
    void this.listen(follower, signal);
  }

  close(): void {
    this.tokens.clear();
  }

  /** Ask for the edits of others, over and over; an answer comes when there is one. */
  private async listen({ layer, revision, tell }: Follower, signal: AbortSignal): Promise<void> {
    const source = this.sourceOf(layer);
    for (let failures = 0; source && !signal.aborted; ) {
      try {
        const token = await this.token(source);
        const answer = await this.server.get(`dhlab/documents/${token}/changes${query({ since: revision() })}`, signal);
        const news = (await answer.json()) as Record<string, unknown>;
        if (!signal.aborted) tell(news);
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof ServerError && ASK_AGAIN.includes(error.status)) {
          // The server was started anew and counts from the beginning.
          await this.open(source).then((opened) => tell({ layer: opened, anew: true }), () => undefined);
        }
        await new Promise((done) => setTimeout(done, WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]));
      }
    }
  }

  private get(layer: number, path: (token: string) => string, signal: AbortSignal): Promise<Response> {
    return this.withToken(layer, (token) => patiently(() => this.server.get(path(token), signal), signal));
  }

  private async withToken<T>(layer: number, act: (token: string) => Promise<T>): Promise<T> {
    const source = this.sourceOf(layer);
    if (!source) throw new Refused("the server does not have this layer");
    const token = await this.token(source);
    try {
      return await act(token);
    } catch (error) {
      if (!(error instanceof ServerError) || !ASK_AGAIN.includes(error.status)) throw error;
    }
    // Tiles that fail together ask for one new token.
    const key = JSON.stringify(source);
    if ((await this.tokens.get(key)) === token) this.tokens.delete(key);
    return act(await this.token(source));
  }

  private token(source: LayerSource): Promise<string> {
    const key = JSON.stringify(source);
    const known = this.tokens.get(key);
    if (known) return known;
    const asked = this.server.post<Opened>("dhlab/scans", source).then(
      (opened) => opened.token,
      (error: Error) => {
        throw new Refused(error.message);
      },
    );
    this.tokens.set(key, asked);
    return asked;
  }
}

/** Try again for a while what a busy server puts off. */
async function patiently<T>(act: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (const wait of WAITS_MS) {
    signal.throwIfAborted();
    try {
      return await act();
    } catch (error) {
      if (error instanceof ServerError && [FAILED, ...AWAY].includes(error.status)) throw new Refused(error.message);
      if (!(error instanceof ServerError) || error.status !== BUSY) throw error;
      await new Promise((done) => setTimeout(done, wait));
    }
  }
  return act();
}

function query(parameters: Record<string, unknown>): string {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}` : "";
}
