/** Opens a slide on the server and shows it; loaded with the first slide, since it brings the whole viewer. */
import type { ServiceManager } from "@jupyterlab/services";
import { NOT_LEARNING } from "../../viewer/src/drawing/learning.ts";
import { HttpTransport } from "../../viewer/src/http.ts";
import { Server } from "../../viewer/src/server.ts";
import type { LayerScene, LayerSource, Settings } from "../../viewer/src/types.ts";
import { ViewerView } from "../../viewer/src/view.ts";
import { documentOf } from "./besides.ts";
import { startViewer } from "./kernel.ts";
import { Learning, learningCode } from "./learning.ts";
import { firstIndex, firstSettings, LocalModel } from "./model.ts";

export interface Wanted {
  path: string;
  services: ServiceManager.IManager;
  annotations: Promise<string[]>;
  kept: Record<string, unknown>;
  save(model: LocalModel): void;
  reopen(): void;
}

/** Ask the server for a slide and its annotations; returns what shows them in an element. */
export async function openSlide(wanted: Wanted): Promise<(element: HTMLElement) => ViewerView> {
  const { path, services, annotations, kept, save, reopen } = wanted;
  const server = Server.ofPage();
  if (!server) throw new Error("this page does not say which Jupyter server it belongs to; reload it.");
  const layers: LayerScene[] = [];
  const transport = new HttpTransport(server, (id) => layers.find((layer) => layer.id === id)?.source ?? null);
  const open = (source: Partial<LayerSource>): Promise<LayerScene> => transport.open({ path, stamp: null, ...source });
  const [base, beside] = await Promise.all([open({}), annotations]);
  layers.push({ ...base, id: 0, base: true });
  const faults: string[] = [];
  const drawn = isDrawable(base) ? [documentOf(path)] : [];
  const shown = beside.filter((one) => !drawn.includes(one));
  const sources = [...shown.map((one) => ({ path: one, on: path })), ...drawn.map((one) => ({ path: one, on: path, document: true }))];
  for (const one of await Promise.allSettled(sources.map(open))) {
    if (one.status === "fulfilled") layers.push({ ...one.value, id: layers.length, base: false });
    else faults.push((one.reason as Error).message);
  }
  const known = (kept.settings ?? {}) as Settings;
  const settings = Object.fromEntries(layers.map((one) => [one.id, { ...firstSettings(one), ...known[String(one.id)] }]));
  const first = { center: null, zoom: null, rotation: 0, index: firstIndex(layers[0]!) };
  const state = { ...first, ...kept, settings, height: null, learning: NOT_LEARNING, _scene: { layers } };
  return (element) => {
    const model: LocalModel = new LocalModel(state, () => save(model));
    const document = layers.find((layer) => layer.document)?.document;
    const start = () => startViewer(services, path, learningCode(layers[0]!.source!.path, document!));
    const view = new ViewerView(model, element, { transport: new Learning(transport, model, start), reopen });
    for (const fault of faults) view.say(fault);
    return view;
  };
}

/** Whether one picture is all that there is: what is drawn belongs to no slice, and to no time. */
function isDrawable({ info, traces }: LayerScene): boolean {
  return !traces && Object.values(info?.axes ?? {}).every((length) => length === 1);
}
