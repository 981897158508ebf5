/* Every function of simd.h against plain loops; prints what differs and fails. One program per instruction set. */
#include "simd.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static int failures;
#define CHECK(name, condition)                                                       \
    do {                                                                             \
        if (!(condition) && failures++ < 20) printf("%s: not %s\n", #name, #condition); \
    } while (0)
#define EACH_LANE for (int lane = 0; lane < LANES; lane++)

static uint32_t state = 1;
static uint32_t draw(void) { return state = state * 1664525u + 1013904223u, state ^ state >> 15; }
static float uniform(float least, float most) { return least + (most - least) * (float)(draw() >> 8) / 16777216.0f; }
static float as_float(uint32_t word) { float value; memcpy(&value, &word, 4); return value; }
static uint32_t as_word(float value) { uint32_t word; memcpy(&word, &value, 4); return word; }
static int same(float a, float b) { return a == b || (a != a && b != b); }

/* n bytes that end where memory ends, or begin where it begins: one byte further and the program dies */
static uint8_t *fenced(size_t n, int at_end) {
    size_t page = 65536; /* a multiple of every page size */
    uint8_t *pages = mmap(0, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + page, page, PROT_READ | PROT_WRITE)) exit(2);
    return at_end ? pages + 2 * page - n : pages + page;
}

static const float STRANGE[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, -0.5f, 1.5f, -1.5f, 2.5f, -2.5f, 1e30f, -1e30f, 1e-42f,
                                INFINITY, -INFINITY, NAN};
#define STRANGE_COUNT ((int)(sizeof STRANGE / sizeof *STRANGE))

static void check_comparisons(void) {
    for (int round = 0; round < STRANGE_COUNT * STRANGE_COUNT; round++) {
        float a[LANES], b[LANES];
        int32_t i[LANES], j[LANES];
        EACH_LANE {
            a[lane] = STRANGE[(round + lane) % STRANGE_COUNT];
            b[lane] = STRANGE[(round / STRANGE_COUNT + lane) % STRANGE_COUNT];
            i[lane] = (int32_t)draw() >> draw() % 32, j[lane] = lane % 3 ? (int32_t)draw() : i[lane];
        }
        vf x = load(a), y = load(b);
        vi u = load_int(i), v = load_int(j);
        vm less = lt(x, y), most = le(x, y), equal = eq_int(u, v), below = lt_int(u, v);
        vf larger = max(x, y), smaller = min(x, y), chosen = pick(less, x, y), held = clamp(x, -1.0f, 2.0f);
        vi larger_int = max_int(u, v), smaller_int = min_int(u, v), chosen_int = pick_int(below, u, v);
        int number = 0;
        EACH_LANE {
            uint32_t bit = 1u << lane;
            number += a[lane] < b[lane];
            CHECK(lt, !(lanes_of(less) & bit) == !(a[lane] < b[lane]));
            CHECK(le, !(lanes_of(most) & bit) == !(a[lane] <= b[lane]));
            CHECK(eq_int, !(lanes_of(equal) & bit) == (i[lane] != j[lane]));
            CHECK(lt_int, !(lanes_of(below) & bit) == (i[lane] >= j[lane]));
            CHECK(both, !(lanes_of(both(most, below)) & bit) == !(a[lane] <= b[lane] && i[lane] < j[lane]));
            CHECK(either, !(lanes_of(either(less, equal)) & bit) == !(a[lane] < b[lane] || i[lane] == j[lane]));
            CHECK(unless, !(lanes_of(unless(most, equal)) & bit) == !(a[lane] <= b[lane] && i[lane] != j[lane]));
            CHECK(pick, same(chosen[lane], a[lane] < b[lane] ? a[lane] : b[lane]));
            CHECK(pick_int, chosen_int[lane] == (i[lane] < j[lane] ? i[lane] : j[lane]));
            /* with NaN the second operand, as x86 has it */
            CHECK(max, same(larger[lane], a[lane] > b[lane] ? a[lane] : b[lane]));
            CHECK(min, same(smaller[lane], a[lane] < b[lane] ? a[lane] : b[lane]));
            CHECK(max_int, larger_int[lane] == (i[lane] > j[lane] ? i[lane] : j[lane]));
            CHECK(min_int, smaller_int[lane] == (i[lane] < j[lane] ? i[lane] : j[lane]));
            CHECK(clamp, held[lane] == (a[lane] > 2 ? 2 : a[lane] > -1 ? a[lane] : -1));
        }
        CHECK(lanes_of, lanes_of(less) >> (LANES - 1) >> 1 == 0);
        CHECK(mask_of, lanes_of(mask_of(lanes_of(less))) == lanes_of(less));
        CHECK(count, count(less) == number);
        CHECK(any, any(less) == (number > 0));
    }
    uint32_t everyone = (1u << LANES) - 1;
    for (int n = 0; n <= LANES + 1; n++) CHECK(first, lanes_of(first(n)) == (n < LANES ? (1u << n) - 1 : everyone));
}

static void check_values(void) {
    float values[LANES];
    int32_t whole[LANES];
    EACH_LANE {
        CHECK(splat, splat(2.5f)[lane] == 2.5f);
        CHECK(splat_int, splat_int(-7)[lane] == -7);
        CHECK(steps, steps()[lane] == lane);
        CHECK(bits, bits(splat(1.0f))[lane] == 0x3f800000);
        CHECK(floats, floats(splat_int(0x3f800000))[lane] == 1.0f);
    }
    volatile float unit = 1.0f + 0x1p-12f; /* the compiler is not to know */
    vf x = splat(unit), lost = rounded(x * x) - (1.0f + 0x1p-11f); /* fused, 2^-24 would be left */
    EACH_LANE CHECK(rounded, lost[lane] == 0.0f);
    for (int round = 0; round < 4096; round++) {
        EACH_LANE {
            /* all signs and sizes below 2^22, among them whole numbers and halves */
            float value = uniform(-1, 1) * (float)(1 << draw() % 23);
            values[lane] = draw() % 3 ? value : floorf(value) + (draw() & 1 ? 0.5f : 0.0f);
            whole[lane] = (int32_t)draw() >> draw() % 32;
        }
        vf x = load(values), magnitude = pick(lt(x, splat(0)), -x, x);
        vf down = floor_of(x), nearest = round_of(x), square_root = root(magnitude), back = to_float(load_int(whole));
        vi cut = to_int(x);
        double total = 0, size = 0;
        float most = values[0];
        EACH_LANE {
            total += values[lane], size += fabs(values[lane]), most = values[lane] > most ? values[lane] : most;
            CHECK(floor_of, down[lane] == floorf(values[lane]));
            CHECK(round_of, nearest[lane] == rintf(values[lane]));
            CHECK(root, square_root[lane] == sqrtf(fabsf(values[lane])));
            CHECK(to_int, cut[lane] == (int32_t)values[lane]);
            CHECK(to_float, back[lane] == (float)whole[lane]);
        }
        CHECK(sum, fabs(sum(x) - total) <= 1e-6 * size);
        CHECK(largest, largest(x) == most);
    }
}

static void check_memory(void) {
    for (int end = 0; end < 2; end++) {
        float *room = (float *)fenced(4 * LANES, end);
        EACH_LANE room[lane] = (float)lane;
        CHECK(load, same(sum(load(room)), LANES * (LANES - 1) / 2));
        store(room, splat(3.0f));
        EACH_LANE CHECK(store, room[lane] == 3.0f);
        CHECK(load_int, load_int((int32_t *)room)[LANES - 1] == 0x40400000);
        CHECK(is_aligned, is_aligned(room) && !is_aligned((char *)room + 4));
        store_int((int32_t *)room, splat_int(0x40a00000));
        EACH_LANE CHECK(store_int, room[lane] == 5.0f);
        stream(room, splat(4.0f));
        finish_streams();
        EACH_LANE CHECK(stream, room[lane] == 4.0f);
        uint8_t *bytes = fenced(LANES, end);
        for (int round = 0; round < 256; round++) {
            EACH_LANE bytes[lane] = (uint8_t)(round + 37 * lane);
            vf found = load_bytes(bytes);
            vi whole_numbers = load_bytes_int(bytes);
            EACH_LANE CHECK(load_bytes_int, whole_numbers[lane] == bytes[lane]);
            EACH_LANE CHECK(load_bytes, found[lane] == (float)(uint8_t)(round + 37 * lane));
            store_bytes(bytes, to_int(255.0f - found));
            EACH_LANE CHECK(store_bytes, bytes[lane] == (uint8_t)~(round + 37 * lane));
        }
        uint8_t *pixels = fenced(3 * LANES, end);
        for (int round = 0; round < 256; round++) {
            uint8_t expected[3 * LANES];
            for (int i = 0; i < 3 * LANES; i++) pixels[i] = expected[i] = (uint8_t)draw();
            vf channel[3];
            load_rgb(pixels, &channel[0], &channel[1], &channel[2]);
            for (int i = 0; i < 3 * LANES; i++) CHECK(load_rgb, channel[i % 3][i / 3] == expected[i]);
            memset(pixels, 0, 3 * LANES);
            store_rgb(pixels, to_int(channel[2]), to_int(channel[1]), to_int(channel[0]));
            for (int i = 0; i < 3 * LANES; i++) CHECK(store_rgb, pixels[i] == expected[i - i % 3 + 2 - i % 3]);
        }
    }
    uint8_t room[256];
    for (int i = 0; i < 256; i++) room[i] = (uint8_t)draw();
    for (int round = 0; round < 256; round++) {
        int32_t offset[LANES];
        EACH_LANE offset[lane] = (int32_t)(draw() % 253) - 128; /* unaligned, and before the base too */
        vi found = gather(room + 128, load_int(offset));
        EACH_LANE {
            int32_t word;
            memcpy(&word, room + 128 + offset[lane], 4);
            CHECK(gather, found[lane] == word);
        }
    }
    for (uint32_t mask = 0; mask < 1u << LANES; mask++) {
        int32_t chosen[LANES];
        float to[LANES];
        int written = 0;
        EACH_LANE chosen[lane] = mask >> lane & 1;
        int claimed = compress(to, eq_int(load_int(chosen), splat_int(1)), to_float(steps()));
        EACH_LANE if (chosen[lane]) CHECK(compress, to[written++] == (float)lane);
        CHECK(compress, claimed == written);
    }
}

/* half precision as IEEE 754 defines it, by integers */
static uint16_t half_of(float value, int exponent_bits, int fraction_bits) {
    uint32_t word = as_word(value), sign = word >> 31 << (exponent_bits + fraction_bits), size = word & 0x7fffffff;
    uint32_t infinite = ((1u << exponent_bits) - 1) << fraction_bits;
    if (size > 0x7f800000) return (uint16_t)(sign | infinite | 1u << (fraction_bits - 1));
    int bias = (1 << (exponent_bits - 1)) - 1, exponent = (int)(size >> 23) - 127 + bias, lost = 23 - fraction_bits;
    uint64_t fraction = size >> 23 ? (size & 0x7fffff) | 0x800000 : size << 1;
    if (exponent < 1) lost += 1 - exponent, exponent = 0; /* denormal */
    if (lost > 40) return (uint16_t)sign;
    uint64_t kept = fraction >> lost, rest = fraction & ((1ull << lost) - 1), tie = 1ull << (lost - 1);
    if (rest > tie || (rest == tie && (kept & 1))) kept++;
    uint64_t half = kept + (exponent ? (uint64_t)(exponent - 1) << fraction_bits : 0);
    return (uint16_t)(sign | (half >= infinite ? infinite : half));
}

static float whole_of(uint16_t half, int exponent_bits, int fraction_bits) {
    int exponent = half >> fraction_bits & ((1 << exponent_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
    float fraction = (float)(half & ((1 << fraction_bits) - 1)), sign = half >> 15 ? -1.0f : 1.0f;
    if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? NAN : sign * INFINITY;
    if (exponent) fraction += (float)(1 << fraction_bits);
    return sign * ldexpf(fraction, (exponent ? exponent : 1) - bias - fraction_bits);
}

static void check_halves(void) {
    for (int end = 0; end < 2; end++) {
        uint16_t *room = (uint16_t *)fenced(2 * LANES, end);
        for (uint32_t start = 0; start < 65536; start += LANES) {
            EACH_LANE room[lane] = (uint16_t)(start + (uint32_t)lane);
            vf wide = load_bf16(room), narrow = load_fp16(room);
            EACH_LANE CHECK(load_bf16, same(wide[lane], whole_of((uint16_t)(start + (uint32_t)lane), 8, 7)));
            EACH_LANE CHECK(load_fp16, same(narrow[lane], whole_of((uint16_t)(start + (uint32_t)lane), 5, 10)));
        }
        for (uint64_t start = 0; start < 1ull << 32; start += 4093 * LANES) {
            float values[LANES];
            EACH_LANE {
                uint32_t word = (uint32_t)start + 4093u * (uint32_t)lane;
                if (lane % 4 == 1) word &= ~0x7fffu; /* ties of bfloat16 */
                if (lane % 4 == 2) word &= ~0xfffu;  /* ties of float16 */
                /* NaN as arithmetic makes it */
                if (lane % 4 == 3 && (word & 0x7fffffff) > 0x7f800000) word = 0x7fc00000;
                values[lane] = as_float(word);
            }
            store_bf16(room, load(values));
            /* of the other NaNs bfloat16 makes what it may */
            EACH_LANE if (values[lane] == values[lane]) CHECK(store_bf16, room[lane] == half_of(values[lane], 8, 7));
            EACH_LANE if (as_word(values[lane]) == 0x7fc00000) CHECK(store_bf16, room[lane] == 0x7fc0);
            store_fp16(room, load(values));
            EACH_LANE {
                if (values[lane] == values[lane]) CHECK(store_fp16, room[lane] == half_of(values[lane], 5, 10));
                else CHECK(store_fp16, (room[lane] & 0x7fff) > 0x7c00);
            }
        }
    }
}

static void check_approximations(void) {
    for (uint32_t word = 0x00800000; word < 0x7f800000 - 1009 * LANES; word += 1009 * LANES) {
        float values[LANES];
        EACH_LANE values[lane] = as_float(word + 1009u * (uint32_t)lane);
        vf found = lg2(load(values));
        EACH_LANE CHECK(lg2, fabs(found[lane] - log2(values[lane])) <= 5e-7 * fabs(log2(values[lane])));
    }
    for (float start = -126; start < 127.9f; start += 0.01f) {
        float values[LANES];
        EACH_LANE values[lane] = start + 0.09f * uniform(0, 1);
        vf found = ex2(load(values));
        EACH_LANE CHECK(ex2, fabs(found[lane] / exp2(values[lane]) - 1) <= 3e-7);
    }
    CHECK(lg2, lg2(splat(1.0f))[0] == 0.0f);
    CHECK(ex2, ex2(splat(0.0f))[0] == 1.0f);
    CHECK(ex2, ex2(splat(-1e30f))[0] == 0x1p-126f);
}

int main(void) {
    check_comparisons();
    check_values();
    check_memory();
    check_halves();
    check_approximations();
    printf("%d lanes, %d failures\n", LANES, failures);
    return failures != 0;
}
