/** The state of a view that no kernel stands behind: it remembers, and tells its listeners. */
import type { LayerScene, LayerSettings, Model } from "../../viewer/src/types.ts";

type Listener = (...args: never[]) => void;

export class LocalModel implements Model {
  private readonly listeners = new Map<string, Set<Listener>>();

  constructor(private readonly state: Record<string, unknown>, private readonly save: () => void) {}

  get(name: string): unknown {
    return this.state[name];
  }

  set(name: string, value: unknown): void {
    if (JSON.stringify(this.state[name]) === JSON.stringify(value)) return;
    this.state[name] = value;
    for (const listener of this.listeners.get(`change:${name}`) ?? []) listener();
  }

  save_changes(): void {
    this.save();
  }

  send(): void {
    throw new Error("a slide that was opened from its file has no kernel to send to");
  }

  on(event: string, callback: Listener): void {
    const known = this.listeners.get(event) ?? new Set();
    this.listeners.set(event, known.add(callback));
  }

  off(event: string, callback: Listener): void {
    this.listeners.get(event)?.delete(callback);
  }
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
