/** Notebooks: a new one about a slide, and copies of dhlab's own from the launcher. */
import type { JupyterFrontEnd } from "@jupyterlab/application";
import { PathExt } from "@jupyterlab/coreutils";
import type { ILauncher } from "@jupyterlab/launcher";
import type { Contents, ServiceManager } from "@jupyterlab/services";
import { Server } from "../../viewer/src/server.ts";
import { stemOf } from "./besides.ts";
import { slideIcon } from "./icons.ts";

interface Curated {
  name: string;
  title: string;
  summary: string;
}

const COPY = "dhlab:copy-notebook";

/** Write a notebook beside a slide that opens and shows it; returns its path. */
export async function writeNotebook({ contents, kernelspecs }: ServiceManager.IManager, path: string): Promise<string> {
  const name = PathExt.basename(path);
  const kernel = kernelspecs.specs?.default ?? "python3";
  const spec = kernelspecs.specs?.kernelspecs[kernel];
  const untitled = await contents.newUntitled({ path: PathExt.dirname(path), type: "notebook" });
  // A string of JSON is one of Python, too.
  const source = `import dhlab as dh\n\nslide = dh.open(${JSON.stringify(name)})\ndh.show(slide)`;
  const content = {
    cells: [{ cell_type: "code", id: "show", execution_count: null, metadata: {}, outputs: [], source }],
    metadata: { kernelspec: { name: kernel, display_name: spec?.display_name ?? kernel, language: spec?.language ?? "python" } },
    nbformat: 4,
    nbformat_minor: 5,
  };
  await contents.save(untitled.path, { type: "notebook", format: "json", content });
  return (await contents.rename(untitled.path, await freePath(contents, path))).path;
}

/** Put a card for every curated notebook into the launcher. */
export async function addCards({ commands, serviceManager }: JupyterFrontEnd, launcher: ILauncher): Promise<void> {
  const server = Server.ofPage();
  if (!server) return;
  const curated = (await (await server.get("dhlab/notebooks")).json()) as { notebooks: Curated[] };
  const of = (name: unknown): Curated | undefined => curated.notebooks.find((one) => one.name === name);
  commands.addCommand(COPY, {
    label: (args) => of(args.name)?.title ?? "Copy a notebook of dhlab",
    caption: (args) => of(args.name)?.summary ?? "",
    icon: slideIcon,
    execute: async ({ name, cwd }) => {
      const { path } = await server.post<{ path: string }>("dhlab/notebooks", { name, folder: cwd ?? "" });
      await serviceManager.contents.get(path, { content: false });
      return commands.execute("docmanager:open", { path });
    },
  });
  curated.notebooks.forEach(({ name }, rank) => launcher.add({ command: COPY, category: "dhlab", args: { name }, rank }));
}

async function freePath(contents: Contents.IManager, slide: string): Promise<string> {
  const folder = PathExt.dirname(slide);
  const stem = stemOf(slide);
  const listing = (await contents.get(folder, { content: true })).content as Contents.IModel[];
  const taken = new Set(listing.map(({ name }) => name));
  let name = `${stem}.ipynb`;
  for (let i = 2; taken.has(name); i++) name = `${stem}-${i}.ipynb`;
  return PathExt.join(folder, name);
}
