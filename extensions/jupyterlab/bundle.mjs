// Packs our sources and the viewer's into lib; what JupyterLab itself has stays outside. The builder then adds the form
// in which JupyterLab finds an extension.
import { build } from "esbuild";
import { rmSync, writeFileSync } from "node:fs";

rmSync("lib", { recursive: true, force: true });
const { metafile } = await build({
  entryPoints: ["src/index.ts"],
  outdir: "lib",
  bundle: true,
  minify: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  external: ["@jupyterlab/*", "@lumino/*"],
  chunkNames: "[name]-[hash]",
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});
writeFileSync("lib/meta.json", JSON.stringify(metafile));
