// Writes the licences of everything that esbuild put into the bundle beside it: they ask for their notice to be kept.
import { readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";

const [, , metafile, target] = process.argv;
const inputs = Object.values(JSON.parse(readFileSync(metafile, "utf8")).outputs).flatMap((o) =>
  Object.entries(o.inputs).flatMap(([path, part]) => (part.bytesInOutput ? [path] : [])),
);
const folders = new Set(inputs.flatMap((path) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0] ?? []));
const texts = [...folders].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no licence file; look at it before it is shipped`);
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
writeFileSync(target, texts.join(`\n${"-".repeat(80)}\n\n`));
rmSync(metafile);
