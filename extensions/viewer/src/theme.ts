/** Light or dark, as the notebook around the viewer is; elsewhere as the system wants it. */
const SYSTEM = "(prefers-color-scheme: dark)";

export function followTheme(root: HTMLElement): () => void {
  const system = matchMedia(SYSTEM);
  const show = (): void => {
    const { jpThemeLight: light, vscodeThemeKind: code } = document.body.dataset;
    const dark = light === undefined ? (code ? code.includes("dark") : system.matches) : light === "false";
    root.dataset.theme = dark ? "dark" : "light";
  };
  const observer = new MutationObserver(show);
  observer.observe(document.body, { attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind"] });
  system.addEventListener("change", show);
  show();
  return () => {
    observer.disconnect();
    system.removeEventListener("change", show);
  };
}
