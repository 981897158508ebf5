/**
 * All that is stored in the widget's state: asks the kernel for the viewer's script and style, once for each page.
 * The script itself would otherwise be kept in every executed notebook.
 */
import type { Model } from "./types.ts";

type Render = (context: { model: Model; el: HTMLElement }) => (() => void) | void;
const KEY = Symbol.for("dhlab.viewer.scripts");
const page = globalThis as unknown as Record<symbol, Map<string, Render> | undefined>;
const scripts = (page[KEY] ??= new Map());

function request(model: Model, version: string): Promise<Render> {
  return new Promise((resolve, reject) => {
    const receive = (message: { type?: string; version?: string }, buffers: DataView<ArrayBuffer>[]): void => {
      if (message.type !== "bundle") return;
      model.off("msg:custom", receive as never);
      const url = URL.createObjectURL(new Blob([buffers[0]!], { type: "text/javascript" }));
      const css = new TextDecoder().decode(buffers[1]);
      import(url)
        .then((module: { render: Render }) => {
          const id = `dhlab-viewer-${version}`;
          if (!document.getElementById(id)) {
            document.head.append(Object.assign(document.createElement("style"), { id, textContent: css }));
          }
          scripts.set(version, module.render);
          resolve(module.render);
        })
        .catch(reject)
        .finally(() => URL.revokeObjectURL(url));
    };
    model.on("msg:custom", receive as never);
    model.send({ type: "bundle" });
  });
}

async function render({ model, el }: { model: Model; el: HTMLElement }): Promise<(() => void) | void> {
  const version = model.get("_version") as string;
  const note = document.createElement("div");
  const late = setTimeout(() => {
    note.textContent = "The viewer waits for its kernel. If this notebook was only opened, run the cell again.";
    note.setAttribute("role", "status");
    el.append(note);
  }, 3000);
  try {
    const start = scripts.get(version) ?? (await request(model, version));
    clearTimeout(late);
    note.remove();
    return start({ model, el });
  } catch (error) {
    clearTimeout(late);
    note.textContent = `The viewer could not start: ${String(error)}`;
    el.append(note);
  }
}

export default { render };
