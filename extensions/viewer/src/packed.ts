/** Arrays that Python packed into one run of bytes; they are looked into where they lie. */
const ARRAYS = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float64: Float64Array,
} as const;

export type Numbers = Uint8Array | Uint16Array | Uint32Array | Float32Array | Float64Array;

export class Packed {
  readonly head: Record<string, unknown>;
  private readonly table: Record<string, [keyof typeof ARRAYS, number[], number]>;
  private readonly bytes: ArrayBuffer;
  private readonly start: number;

  constructor(view: DataView<ArrayBuffer>) {
    // Frames of a websocket message may begin anywhere, wide numbers only at multiples of their size.
    const aligned = view.byteOffset % 8 === 0;
    this.bytes = aligned ? view.buffer : view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
    const begin = aligned ? view.byteOffset : 0;
    const length = new DataView(this.bytes, begin).getUint32(0, true);
    this.start = begin + 4 + length;
    this.head = JSON.parse(new TextDecoder().decode(new Uint8Array(this.bytes, begin + 4, length))) as Record<string, unknown>;
    this.table = this.head.arrays as typeof this.table;
  }

  get<T extends Numbers>(name: string): T {
    const [kind, shape, offset] = this.table[name]!;
    return new ARRAYS[kind](this.bytes, this.start + offset, shape.reduce((a, b) => a * b, 1)) as T;
  }
}
