/** The viewer in a notebook cell, as anywidget starts it. */
import { CommTransport } from "./channel.ts";
import { HttpTransport } from "./http.ts";
import { Server } from "./server.ts";
import { FirstOf } from "./transport.ts";
import type { LayerScene, LayerSource, Model } from "./types.ts";
import { ViewerView } from "./view.ts";

export function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const kernel = new CommTransport(model);
  const server = Server.ofPage();
  const transport = server ? new FirstOf(new HttpTransport(server, (id) => sourceOf(model, id)), kernel) : kernel;
  const view = new ViewerView(model, el, { transport });
  return () => view.close();
}

/** The file that the server may send of a layer; only the kernel knows which slice of it lies on a slice of the base. */
function sourceOf(model: Model, id: number): LayerSource | null {
  const { layers } = model.get("_scene") as { layers: LayerScene[] };
  const layer = layers.find((one) => one.id === id);
  const sliced = Object.values(layer?.info?.axes ?? {}).some((length) => length > 1);
  return layer && !layer.document && (layer.base || !sliced) ? (layer.source ?? null) : null;
}
