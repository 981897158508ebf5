/** The state of a view, on this page or in a kernel: it remembers, and tells its listeners. */
import type { Kernel } from "@jupyterlab/services";
import type { LayerScene, LayerSettings, Model } from "../../viewer/src/types.ts";

type Listener = (...args: never[]) => void;

abstract class StateModel implements Model {
  private readonly listeners = new Map<string, Set<Listener>>();

  constructor(protected readonly state: Record<string, unknown>) {}

  abstract save_changes(): void;
  abstract send(content: unknown): void;

  get(name: string): unknown {
    return this.state[name];
  }

  set(name: string, value: unknown): void {
    this.take({ [name]: value });
  }

  /** Take over several values before anybody hears of one; returns the names of those that are new. */
  protected take(values: Record<string, unknown>): string[] {
    const changed = Object.keys(values).filter((name) => JSON.stringify(this.state[name]) !== JSON.stringify(values[name]));
    for (const name of changed) this.state[name] = values[name];
    for (const name of changed) this.tell(`change:${name}`);
    return changed;
  }

  tell(event: string, ...args: unknown[]): void {
    for (const listener of [...(this.listeners.get(event) ?? [])]) listener(...(args as never[]));
  }

  on(event: string, callback: Listener): void {
    const known = this.listeners.get(event) ?? new Set();
    this.listeners.set(event, known.add(callback));
  }

  off(event: string, callback: Listener): void {
    this.listeners.get(event)?.delete(callback);
  }
}

/** A state that no kernel stands behind. */
export class LocalModel extends StateModel {
  constructor(state: Record<string, unknown>, private readonly save: () => void) {
    super(state);
  }

  save_changes(): void {
    this.save();
  }

  send(): void {
    throw new Error("a slide that was opened from its file has no kernel to send to");
  }
}

/** The state of a widget in a kernel, as ipywidgets tells it over a comm. */
export class WidgetModel extends StateModel {
  private readonly unsent = new Set<string>();

  constructor(private readonly comm: Kernel.IComm, state: Record<string, unknown>) {
    super(state);
    comm.onMsg = ({ content: { data }, buffers = [] }) => {
      if (data.method === "custom") this.tell("msg:custom", data.content, buffers.map(viewOf));
      if (data.method === "update") this.take(data.state as Record<string, unknown>);
    };
  }

  override set(name: string, value: unknown): void {
    for (const changed of this.take({ [name]: value })) this.unsent.add(changed);
  }

  save_changes(): void {
    const state = Object.fromEntries([...this.unsent].map((name) => [name, this.state[name]]));
    this.unsent.clear();
    if (Object.keys(state).length) this.comm.send({ method: "update", state, buffer_paths: [] } as never);
  }

  send(content: unknown): void {
    this.comm.send({ method: "custom", content } as never);
  }
}

function viewOf(buffer: ArrayBuffer | ArrayBufferView): DataView {
  return ArrayBuffer.isView(buffer) ? new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength) : new DataView(buffer);
}

/** How a layer is shown at first. */
export function firstSettings({ base, kind, maps, display }: LayerScene): LayerSettings {
  const settings = { visible: true, opacity: base || kind === "shapes" ? 1 : 0.5, hidden: [] };
  if (kind === "shapes") return settings;
  const [low, high] = display ?? [];
  return {
    ...settings, channel: null, threshold: 0,
    ...(maps && { colors: Object.keys(maps)[0] }), ...(low !== undefined && { low }), ...(high !== undefined && { high }),
  };
}

/** The middle of every further axis. */
export function firstIndex({ info }: LayerScene): Record<string, number> {
  return Object.fromEntries(Object.entries(info?.axes ?? {}).map(([axis, length]) => [axis, Math.floor(length / 2)]));
}
