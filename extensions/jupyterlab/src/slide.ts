/** Opens a slide on the server and shows it; loaded with the first slide, since it brings the whole viewer. */
import { HttpTransport } from "../../viewer/src/http.ts";
import { Server } from "../../viewer/src/server.ts";
import type { Settings } from "../../viewer/src/types.ts";
import { ViewerView } from "../../viewer/src/view.ts";
import { firstIndex, firstSettings, LocalModel } from "./model.ts";

export interface Wanted {
  path: string;
  annotations: string[];
  kept: Record<string, unknown>;
  save(model: LocalModel): void;
}

/** Ask the server for a slide and its annotations; returns what shows them in an element. */
export async function openSlide({ path, annotations, kept, save }: Wanted): Promise<(element: HTMLElement) => ViewerView> {
  const server = Server.ofPage();
  if (!server) throw new Error("this page does not say which Jupyter server it belongs to; reload it.");
  const transport = new HttpTransport(server, []);
  const base = { ...(await transport.open(0, { path, stamp: null })), base: true };
  const shapes = await Promise.allSettled(annotations.map((one, i) => transport.open(i + 1, { path: one, stamp: null })));
  const layers = [base, ...shapes.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []))];
  const faults = shapes.flatMap((one) => (one.status === "rejected" ? [String((one.reason as Error).message)] : []));
  const known = (kept.settings ?? {}) as Settings;
  const settings = Object.fromEntries(layers.map((one) => [one.id, { ...firstSettings(one), ...known[String(one.id)] }]));
  const state = { center: null, zoom: null, rotation: 0, index: firstIndex(base), ...kept, settings, height: null, _scene: { layers } };
  return (element) => {
    const model: LocalModel = new LocalModel(state, () => save(model));
    const view = new ViewerView(model, element, transport);
    for (const fault of faults) view.say(fault);
    return view;
  };
}
