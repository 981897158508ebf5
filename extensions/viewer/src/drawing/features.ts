/** Objects of a document as GeoJSON features, and the changes that are made to them. */
import type { Rgb } from "../types.ts";

export interface GeoGeometry {
  type: string;
  coordinates?: unknown;
  geometries?: GeoGeometry[];
}

export interface Classification {
  name?: string;
  /** Instead of the name the parts of a derived class, as QuPath writes it. */
  names?: string[];
  color?: Rgb;
}

export interface GeoFeature {
  type: "Feature";
  id: string;
  geometry: GeoGeometry;
  properties: {
    objectType?: string;
    classification?: Classification | null;
    name?: string | null;
    metadata?: Record<string, unknown>;
    [key: string]: unknown;
  };
}

/** Values of fields: `exists`, `geometry`, `properties/…`, `properties/metadata/…`. */
export type Fields = Record<string, unknown>;

export interface Change {
  object: string;
  before: Fields;
  after: Fields;
}

export type Review = "proposed" | "accepted" | "rejected";
export const REVIEWS: Review[] = ["proposed", "accepted", "rejected"];

export const CLASS = "properties/classification";
export const NAME = "properties/name";
export const REVIEW = "properties/metadata/review";
const COMMENT = "comment ";

export function classOf(feature: GeoFeature): string | null {
  const classification = feature.properties.classification;
  return classification?.name ?? classification?.names?.join(": ") ?? null;
}

export function reviewOf(feature: GeoFeature): Review | null {
  return (feature.properties.metadata?.review as Review | undefined) ?? null;
}

export interface Comment {
  time: string;
  author: string;
  text: string;
}

/** What people wrote on an object, the oldest first. */
export function commentsOf(feature: GeoFeature): Comment[] {
  return Object.entries(feature.properties.metadata ?? {})
    .filter(([key, text]) => key.startsWith(COMMENT) && text !== null)
    .map(([key, text]) => {
      const [, time = "", ...author] = key.split(" ");
      return { time, author: author.join(" "), text: String(text) };
    })
    .sort((a, b) => a.time.localeCompare(b.time));
}

export function commentField(author: string): string {
  return `properties/metadata/${COMMENT}${new Date().toISOString()} ${author}`;
}

/** The present value of a field. */
export function valueOf(feature: GeoFeature | null, field: string): unknown {
  if (field === "exists") return feature !== null;
  let value: unknown = feature;
  for (const part of parts(field)) value = (value as Record<string, unknown> | null | undefined)?.[part];
  return value ?? null;
}

/** A change of some fields, with the values that they have now. */
export function changeOf(feature: GeoFeature | null, object: string, after: Fields): Change {
  const before = Object.fromEntries(Object.keys(after).map((field) => [field, valueOf(feature, field)]));
  return { object, before, after };
}

/** A new object. */
export function creation(object: string, geometry: GeoGeometry, properties: Fields): Change {
  const after = { exists: true, geometry, "properties/objectType": "annotation", ...properties };
  return { object, before: { exists: false }, after };
}

/** The object as it is after a change; null where it is gone. */
export function applied(feature: GeoFeature | null, { object, after }: Change): GeoFeature | null {
  if (after.exists === false) return null;
  const found: GeoFeature | null = feature ? structuredClone(feature) : null;
  const changed = found ?? ({ type: "Feature", id: object, properties: {} } as unknown as GeoFeature);
  for (const [field, value] of Object.entries(after)) {
    if (field === "exists") continue;
    const path = parts(field);
    const last = path.pop()!;
    let at = changed as unknown as Record<string, unknown>;
    for (const part of path) at = (at[part] ??= {}) as Record<string, unknown>;
    if (value === null) delete at[last];
    else at[last] = value;
  }
  return changed.geometry ? changed : null;
}

/** A name that no other object has. */
export function newId(): string {
  // Pages that came without TLS from another machine have no randomUUID.
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const text = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return text.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

/** The names of a key of metadata may hold slashes. */
function parts(field: string): string[] {
  const found = /^properties\/metadata\/(.*)$/s.exec(field);
  if (found) return ["properties", "metadata", found[1]!];
  return field.split(/\/(.*)/s).filter(Boolean);
}
