/** Live learning in a tab: a kernel learns from the same document on disk, and its heat map lies among the tab's layers. */
import { CommTransport } from "../../viewer/src/channel.ts";
import { type Learned, NOT_LEARNING } from "../../viewer/src/drawing/learning.ts";
import type { EditRequest, Follower, Reply, ShapesRequest, TileRequest, Transport, ValuesRequest } from "../../viewer/src/transport.ts";
import type { DocumentScene, LayerScene, Model, Settings } from "../../viewer/src/types.ts";
import type { KernelViewer } from "./kernel.ts";

interface Learner {
  viewer: KernelViewer;
  transport: CommTransport;
  /** The document among the kernel's layers. */
  document: number;
  /** A layer's id here is this less the kernel's. */
  offset: number;
}

// Where the view is: the kernel outlines what is in it, and goes to a place that should be looked at.
const PLACE = ["center", "zoom", "rotation", "size"];
const GONE = "The kernel that learned has ended. What is drawn is saved; start it again.";

/** Asks the server for the tab's own layers, and for those of the learner, whose ids are below zero, the kernel. */
export class Learning implements Transport {
  private learner: Learner | null = null;
  /** The lowest id that a layer had: none is used twice, for tiles are kept by it. */
  private lowest = 0;
  /** Counts starts and stops, so that a kernel for which nobody waits any more is noticed. */
  private turn = 0;

  constructor(private readonly server: Transport, private readonly model: Model, private readonly startKernel: () => Promise<KernelViewer>) {
    for (const name of PLACE) model.on(`change:${name}`, () => queueMicrotask(() => this.tellPlace()));
  }

  tile(request: TileRequest, signal: AbortSignal): Promise<Blob> {
    const { transport, layer } = this.of(request.layer);
    return transport.tile({ ...request, layer }, signal);
  }

  shapes(request: ShapesRequest, signal: AbortSignal): Promise<Reply> {
    return this.server.shapes(request, signal);
  }

  values(request: ValuesRequest, signal: AbortSignal): Promise<(number | null)[]> {
    const { transport, layer } = this.of(request.layer);
    return transport.values({ ...request, layer }, signal);
  }

  edit(request: EditRequest, signal: AbortSignal): Promise<Record<string, unknown>> {
    return request.type === "learn" ? this.learn(request.action, signal) : this.server.edit(request, signal);
  }

  follow(follower: Follower, signal: AbortSignal): void {
    this.server.follow(follower, signal);
  }

  close(): void {
    this.end();
    this.server.close();
  }

  private of(layer: number): { transport: Transport; layer: number } {
    const { learner } = this;
    return layer < 0 && learner ? { transport: learner.transport, layer: learner.offset - layer } : { transport: this.server, layer };
  }

  private async learn(action: string, signal: AbortSignal): Promise<Record<string, unknown>> {
    if (action === "stop") this.end();
    if (action === "start") await this.begin();
    const { learner } = this;
    if (!learner && (action === "stop" || action === "start")) return {};
    if (!learner) throw new Error("Nothing is being learned: begin with “Learn from what is drawn”.");
    try {
      return await learner.transport.edit({ type: "learn", layer: learner.document, action }, signal);
    } catch (error) {
      // That the kernel has gone is said where it is noticed.
      if (learner !== this.learner) return {};
      if (action === "start") this.end();
      throw error;
    }
  }

  private async begin(): Promise<void> {
    const turn = ++this.turn;
    this.say({ ...NOT_LEARNING, state: "starting" });
    try {
      const viewer = await this.startKernel();
      if (turn === this.turn) this.join(viewer);
      else viewer.end();
    } catch (error) {
      if (turn !== this.turn) return;
      this.say(NOT_LEARNING);
      throw error;
    }
  }

  private join(viewer: KernelViewer): void {
    const { model } = viewer;
    const { layers } = model.get("_scene") as { layers: LayerScene[] };
    const document = layers.find((one) => one.document)!.id;
    const learner = { viewer, transport: new CommTransport(model), document, offset: this.lowest };
    this.learner = learner;
    // What was on its way when it was stopped is not heard any more.
    const hear = (act: () => void) => () => { if (learner === this.learner) act(); };
    model.on("change:_scene", hear(() => this.show(learner)));
    model.on("change:learning", hear(() => this.say(model.get("learning") as Learned)));
    for (const name of PLACE) model.on(`change:${name}`, hear(() => this.model.set(name, model.get(name))));
    void viewer.ended.then(hear(() => this.end(GONE)));
    this.tellPlace();
  }

  private end(message = ""): void {
    const { learner } = this;
    this.turn += 1;
    this.say({ ...NOT_LEARNING, message });
    this.lay([], {});
    this.learner = null;
    // Whoever waits for an answer hears that none will come.
    learner?.viewer.model.tell("comm_live_update");
    learner?.transport.close();
    learner?.viewer.end();
  }

  private say(learned: Learned): void {
    this.model.set("learning", learned);
  }

  private tellPlace(): void {
    const model = this.learner?.viewer.model;
    for (const name of PLACE) model?.set(name, this.model.get(name) ?? null);
    model?.save_changes();
  }

  /** Lay what the kernel has beside slide and document among the tab's layers. */
  private show({ viewer: { model }, offset }: Learner): void {
    const { layers } = model.get("_scene") as { layers: LayerScene[] };
    const settings = model.get("settings") as Settings;
    const learned = layers.filter((one) => !one.base && !one.document).map((one) => ({ ...one, id: offset - one.id }));
    this.lowest = Math.min(this.lowest, ...learned.map(({ id }) => id));
    this.lay(learned, Object.fromEntries(learned.map(({ id }) => [id, settings[String(offset - id)]!])));
  }

  /** Put layers under what is drawn, instead of those that were there; one that stays keeps its settings. */
  private lay(learned: LayerScene[], first: Settings): void {
    const { layers } = this.model.get("_scene") as { layers: LayerScene[] };
    const own = layers.filter(({ id }) => id >= 0);
    const known = this.model.get("settings") as Settings;
    const ids = [...own, ...learned].map(({ id }) => String(id));
    this.model.set("settings", Object.fromEntries(ids.map((id) => [id, known[id] ?? first[id]!])));
    const drawn = own.findIndex((one) => one.document);
    this.model.set("_scene", { layers: [...own.slice(0, drawn), ...learned, ...own.slice(drawn)] });
  }
}

/** What the kernel runs; a console that is opened on it finds these names. */
export function learningCode(slide: string, { path, author }: DocumentScene): string {
  // A string of JSON is one of Python, too.
  const [scan, drawn, who] = [slide, path, author].map((text) => JSON.stringify(text));
  return [
    "import dhlab as dh", "", `slide = dh.open(${scan})`, `document = dh.Document.open(slide, ${drawn}, author=${who})`,
    "viewer = dh.show(slide, document)",
  ].join("\n");
}
