/** dhlab in JupyterLab: slides open in tabs, notebooks start from slides and from the launcher. */
import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from "@jupyterlab/application";
import { MainAreaWidget, ToolbarButton, WidgetTracker } from "@jupyterlab/apputils";
import { PageConfig, PathExt } from "@jupyterlab/coreutils";
import type { DocumentWidget } from "@jupyterlab/docregistry";
import { IFileBrowserFactory } from "@jupyterlab/filebrowser";
import { ILauncher } from "@jupyterlab/launcher";
import { IStateDB } from "@jupyterlab/statedb";
import { launchIcon, notebookIcon } from "@jupyterlab/ui-components";
import { FACTORY, isSlide, register } from "./files.ts";
import { slideIcon } from "./icons.ts";
import { JobsPanel } from "./jobs.ts";
import { addCards, writeNotebook } from "./notebooks.ts";
import { SlidePanel, type SlidePanelOptions } from "./panel.ts";
import "./style.css";

const OPEN = "dhlab:open";
const NOTEBOOK = "dhlab:new-notebook";
const NAPARI = "dhlab:open-in-napari";
/** Where napari is, below the server's address; empty where it is not installed. */
const NAPARI_PAGE = PageConfig.getOption("dhlabNapari");

const slides: JupyterFrontEndPlugin<void> = {
  id: "dhlab:slides",
  description: "Opens slides, volumes and large pictures in tabs.",
  autoStart: true,
  optional: [IFileBrowserFactory, ILayoutRestorer, IStateDB],
  activate: (app: JupyterFrontEnd, browsers: IFileBrowserFactory | null, restorer: ILayoutRestorer | null, state: IStateDB | null) => {
    const { commands, contextMenu, docRegistry, serviceManager, shell } = app;
    const selected = (): { path: string; name: string; type: string } | undefined => {
      const item = browsers?.tracker.currentWidget?.selectedItems().next();
      return item && !item.done ? item.value : undefined;
    };
    const make = (path: string): SlidePanelOptions => ({ path, services: serviceManager, state });
    const notebookButton = (path: () => string): ToolbarButton =>
      new ToolbarButton({
        icon: notebookIcon, label: "Open in a new notebook", tooltip: "Write a notebook beside this slide that opens and shows it",
        onClick: () => void commands.execute(NOTEBOOK, { path: path() }),
      });
    const napariButton = (path: () => string): ToolbarButton =>
      new ToolbarButton({
        icon: launchIcon, label: "Open in napari", tooltip: "Open this slide and what is drawn on it in napari, in a browser tab",
        onClick: () => void commands.execute(NAPARI, { path: path() }),
      });
    const buttons = (path: () => string): { name: string; widget: ToolbarButton }[] => [
      { name: "notebook", widget: notebookButton(path) },
      ...(NAPARI_PAGE ? [{ name: "napari", widget: napariButton(path) }] : []),
    ];

    const documents = new WidgetTracker<DocumentWidget<SlidePanel>>({ namespace: "dhlab-slide" });
    const folders = new WidgetTracker<MainAreaWidget<SlidePanel>>({ namespace: "dhlab-folder" });
    const factory = register(docRegistry, {
      make,
      toolbar: (widget) => buttons(() => widget.context.path),
    });
    factory.widgetCreated.connect((_, widget) => {
      void documents.add(widget);
      widget.context.pathChanged.connect(() => void documents.save(widget));
    });

    commands.addCommand(OPEN, {
      label: "Open as slide",
      icon: slideIcon,
      isVisible: () => selected()?.type === "directory" && isSlide(selected()!),
      execute: async (args) => {
        const path = (args.path as string | undefined) ?? selected()?.path;
        if (path === undefined) return;
        const shown = folders.find(({ content }) => content.path === path);
        if (shown) return shell.activateById(shown.id);
        const widget = new MainAreaWidget({ content: new SlidePanel(make(path)) });
        widget.id = `dhlab-folder-${path}`;
        Object.assign(widget.title, { label: PathExt.basename(path), caption: path, icon: slideIcon, closable: true });
        for (const { name, widget: button } of buttons(() => path)) widget.toolbar.addItem(name, button);
        shell.add(widget, "main");
        await folders.add(widget);
      },
    });
    commands.addCommand(NOTEBOOK, {
      label: "Open in a new notebook",
      icon: notebookIcon,
      isVisible: (args) => args.path !== undefined || (selected() !== undefined && isSlide(selected()!)),
      execute: async (args) => {
        const path = (args.path as string | undefined) ?? selected()?.path;
        if (path === undefined) return;
        await commands.execute("docmanager:open", { path: await writeNotebook(serviceManager, path) });
      },
    });
    contextMenu.addItem({ command: OPEN, selector: '.jp-DirListing-item[data-isdir="true"]', rank: 1 });
    commands.addCommand(NAPARI, {
      label: "Open in napari",
      icon: launchIcon,
      isVisible: (args) => NAPARI_PAGE !== "" && (args.path !== undefined || (selected() !== undefined && isSlide(selected()!))),
      execute: (args) => {
        const path = (args.path as string | undefined) ?? selected()?.path;
        if (path === undefined) return;
        const query = new URLSearchParams({ path: serviceManager.contents.localPath(path) });
        window.open(`${PageConfig.getBaseUrl()}${NAPARI_PAGE}?${query}`, "_blank");
      },
    });
    contextMenu.addItem({ command: NOTEBOOK, selector: ".jp-DirListing-item", rank: 2 });
    contextMenu.addItem({ command: NAPARI, selector: ".jp-DirListing-item", rank: 3 });

    if (!restorer) return;
    void restorer.restore(documents, {
      command: "docmanager:open",
      args: ({ context }) => ({ path: context.path, factory: FACTORY }),
      name: ({ context }) => context.path,
    });
    void restorer.restore(folders, {
      command: OPEN,
      args: ({ content }) => ({ path: content.path }),
      name: ({ content }) => content.path,
    });
  },
};

const notebooks: JupyterFrontEndPlugin<void> = {
  id: "dhlab:notebooks",
  description: "Offers dhlab's notebooks in the launcher.",
  autoStart: true,
  requires: [ILauncher],
  activate: (app: JupyterFrontEnd, launcher: ILauncher) => {
    addCards(app, launcher).catch((error: Error) => console.warn(`dhlab's notebooks are not in the launcher: ${error.message}`));
  },
};

const jobs: JupyterFrontEndPlugin<void> = {
  id: "dhlab:jobs",
  description: "Shows what runs outside the notebooks: trainings on several workers, on this machine or on Slurm.",
  autoStart: true,
  optional: [ILayoutRestorer],
  activate: ({ shell }: JupyterFrontEnd, restorer: ILayoutRestorer | null) => {
    const panel = new JobsPanel();
    shell.add(panel, "left", { rank: 700 });
    restorer?.add(panel, panel.id);
  },
};

export default [slides, notebooks, jobs];
