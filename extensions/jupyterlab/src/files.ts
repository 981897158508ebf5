/** Which files are slides, and how they open: in a tab that never fetches the file itself. */
import { ABCWidgetFactory, DocumentModel, DocumentRegistry, DocumentWidget, TextModelFactory } from "@jupyterlab/docregistry";
import type { Contents } from "@jupyterlab/services";
import { slideIcon } from "./icons.ts";
import { SlidePanel, type SlidePanelOptions } from "./panel.ts";

export const FACTORY = "Slide";
const MODEL = "dhlab-slide-model";
const SLIDES = [".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".tif", ".tiff", ".btf"];
const VOLUMES = [".dcm", ".nii", ".nii.gz"];
const ZARR = /\.zarr$/i;
// JupyterLab knows these and shows them as they are; large ones may be opened with ours.
const PICTURES = ["png", "jpeg", "bmp", "webp", "gif"];

const TYPES: DocumentRegistry.IFileType[] = [
  { name: "dhlab-slide", displayName: "Slide", mimeTypes: ["image/tiff"], extensions: SLIDES },
  { name: "dhlab-volume", displayName: "Volume", mimeTypes: ["application/octet-stream"], extensions: VOLUMES },
].map((type) => ({ ...type, contentType: "file", fileFormat: "base64", icon: slideIcon }) as never);

/** Whether dhlab opens a file of this name, or a folder. */
export function isSlide({ name, type }: { name: string; type: string }): boolean {
  if (type === "directory") return ZARR.test(name);
  const low = name.toLowerCase();
  return [...SLIDES, ...VOLUMES].some((suffix) => low.endsWith(suffix));
}

/** A document without content: JupyterLab fetches a file only for models that have a format. */
class SlideModel extends DocumentModel {
  override get readOnly(): boolean {
    return true;
  }
  /** Said to be saved by others, it gets no checkpoint: that would be a copy of the whole slide. */
  override get collaborative(): boolean {
    return true;
  }
  override fromString(): void {}
  override toString(): string {
    return "";
  }
}

class SlideModelFactory extends TextModelFactory {
  override get name(): string {
    return MODEL;
  }
  override get contentType(): Contents.ContentType {
    return "file";
  }
  override get fileFormat(): Contents.FileFormat {
    return null as unknown as Contents.FileFormat;
  }
  override createNew(options?: DocumentRegistry.IModelOptions): SlideModel {
    return new SlideModel(options as never);
  }
}

export class SlideFactory extends ABCWidgetFactory<DocumentWidget<SlidePanel>> {
  constructor(private readonly make: (path: string) => SlidePanelOptions, options: DocumentRegistry.IWidgetFactoryOptions<DocumentWidget<SlidePanel>>) {
    super(options);
  }

  protected createNewWidget(context: DocumentRegistry.Context): DocumentWidget<SlidePanel> {
    const widget = new DocumentWidget({ context, content: new SlidePanel(this.make(context.path)) });
    widget.title.icon = slideIcon;
    context.pathChanged.connect((_, path) => widget.content.move(path));
    return widget;
  }
}

/** Make double-click and "Open with" lead to our tabs. */
export function register(
  registry: DocumentRegistry,
  { make, toolbar }: { make(path: string): SlidePanelOptions; toolbar(widget: DocumentWidget<SlidePanel>): DocumentRegistry.IToolbarItem[] },
): SlideFactory {
  for (const type of TYPES) registry.addFileType(type);
  // Not shared for writing together, either.
  registry.addModelFactory(new SlideModelFactory(false));
  const own = [...TYPES.map(({ name }) => name), "tiff"];
  const factory = new SlideFactory(make, {
    name: FACTORY,
    modelName: MODEL,
    fileTypes: [...own, ...PICTURES],
    defaultFor: own,
    readOnly: true,
    toolbarFactory: toolbar,
  });
  registry.addWidgetFactory(factory);
  return factory;
}
