import { LabIcon } from "@jupyterlab/ui-components";

// A glass slide with a section of tissue on it.
const SLIDE =
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><g fill="none" stroke-width="1.6" stroke-linejoin="round">' +
  '<path class="jp-icon3 dhlab-stroke" stroke="#616161" d="M4 6h16v12H4ZM16.5 6v12"/>' +
  '<path fill="#b2579f" stroke="none" d="M6.2 12.3c0-2.4 1.9-3.8 4.2-3.5s4 1.2 3.8 3.3-1.5 3.5-3.8 3.4-4.2-1-4.2-3.2Z"/></g></svg>';

export const slideIcon = new LabIcon({ name: "dhlab:slide", svgstr: SLIDE });

// Bars that have come to different lengths.
const JOBS =
  '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><g class="jp-icon3" fill="#616161">' +
  '<rect x="4" y="5" width="16" height="3" rx="1.5" opacity=".35"/><rect x="4" y="5" width="13" height="3" rx="1.5"/>' +
  '<rect x="4" y="10.5" width="16" height="3" rx="1.5" opacity=".35"/><rect x="4" y="10.5" width="7" height="3" rx="1.5"/>' +
  '<rect x="4" y="16" width="16" height="3" rx="1.5"/></g></svg>';

export const jobsIcon = new LabIcon({ name: "dhlab:jobs", svgstr: JOBS });
