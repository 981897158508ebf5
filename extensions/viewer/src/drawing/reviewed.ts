/** How an object looks by its review: what is proposed is dashed, what is rejected is faint. */
import type { Review } from "./features.ts";

export interface Reviewed {
  /** How much of the colour the area has. */
  fill: number;
  /** How much of it the line has. */
  line: number;
  /** In screen pixels; empty for a line without gaps. */
  dash: number[];
}

const LOOKS: Record<Review | "", Reviewed> = {
  "": { fill: 0.14, line: 1, dash: [] },
  accepted: { fill: 0.14, line: 1, dash: [] },
  proposed: { fill: 0.08, line: 1, dash: [8, 5] },
  rejected: { fill: 0.04, line: 0.7, dash: [2, 6] },
};

export function reviewed(review: Review | null): Reviewed {
  return LOOKS[review ?? ""];
}
