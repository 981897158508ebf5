/** The viewer in a notebook cell, as anywidget starts it. */
import { CommTransport } from "./channel.ts";
import { HttpTransport } from "./http.ts";
import { Server } from "./server.ts";
import { FirstOf } from "./transport.ts";
import type { LayerScene, Model } from "./types.ts";
import { ViewerView } from "./view.ts";

export function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const { layers } = model.get("_scene") as { layers: LayerScene[] };
  const kernel = new CommTransport(model);
  const server = Server.ofPage();
  const view = new ViewerView(model, el, server ? new FirstOf(new HttpTransport(server, layers), kernel) : kernel);
  return () => view.close();
}
