/** Annotations that lie beside a slide: GeoJSON with the slide's own stem, as QuPath exports it. */
import { PathExt } from "@jupyterlab/coreutils";
import type { Contents } from "@jupyterlab/services";

const FORMATS = [".geojson", ".geojson.gz"];

/** The path of the annotations that are drawn on a slide; nothing need be there yet. */
export function documentOf(path: string): string {
  return PathExt.join(PathExt.dirname(path), `${stemOf(path)}${FORMATS[0]}`);
}

/** The name of a slide without its suffixes. */
export function stemOf(path: string): string {
  return PathExt.basename(path).replace(/(\.ome)?\.[^.]+$/i, "");
}

/** The paths of the annotations of a slide. */
export async function besides(contents: Contents.IManager, path: string): Promise<string[]> {
  const folder = PathExt.dirname(path);
  const name = PathExt.basename(path);
  const stem = stemOf(path);
  try {
    // The listing, not the file: a file that is not there would stand in the console as an error.
    const { content } = await contents.get(folder, { content: true, type: "directory" });
    const wanted = FORMATS.flatMap((format) => [stem + format, name + format]);
    return (content as Contents.IModel[]).filter((one) => wanted.includes(one.name)).map((one) => one.path);
  } catch {
    return [];
  }
}
