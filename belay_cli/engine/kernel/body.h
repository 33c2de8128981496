/* The loops, in terms of eight elements at a time; each instruction set says first what those are.

A tile of elements goes through all rows before the next one begins. Several outputs share what was widened of a row.
Every element is one chain of fused multiply-adds in the order of the rows, so its bits depend on nothing else: a sum
begins with -0, to which fma adds the first product as it is, its sign included. */

#include <string.h>

#define GROUP 16    /* rows that are widened at a time: 16 KiB */
#define TOGETHER 4  /* outputs that share a widened row */

INLINE size_t itemsize(Dtype dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : 2; }

INLINE D8 d8_from(const char *row, size_t element, Dtype from) {
    switch (from) {
    case F64:
        return d8_load((const double *)row + element);
    case F32:
        return d8_widen(f8_load_f32(row + 4 * element));
    case F16:
        return d8_widen(f8_load_f16(row + 2 * element));
    default:
        return d8_widen(f8_load_bf16(row + 2 * element));
    }
}

/* sums[TILE] <- the chain over the rows whose coefficient is not 0; `from` is a constant wherever this is inlined. */
INLINE void chain(double *sums, const char *const *row, const double *coefficients, size_t stride, size_t rows,
                  Dtype from) {
    for (size_t i = 0; i < TILE; i += 32) {
        D8 s0 = d8_load(sums + i), s1 = d8_load(sums + i + 8), s2 = d8_load(sums + i + 16), s3 = d8_load(sums + i + 24);
        for (size_t r = 0; r < rows; r++) {
            double c = coefficients[r * stride];
            D8 factor = d8_set(c);
            if (c == 0)
                continue;
            s0 = d8_fma(factor, d8_from(row[r], i, from), s0);
            s1 = d8_fma(factor, d8_from(row[r], i + 8, from), s1);
            s2 = d8_fma(factor, d8_from(row[r], i + 16, from), s2);
            s3 = d8_fma(factor, d8_from(row[r], i + 24, from), s3);
        }
        d8_store(sums + i, s0);
        d8_store(sums + i + 8, s1);
        d8_store(sums + i + 16, s2);
        d8_store(sums + i + 24, s3);
    }
}

/* The same for 4 outputs, sums[4][TILE], by rows [rows][TILE] that are wide already and no coefficient that is 0. */
INLINE void chains(double *sums, const double *wide, const double *coefficients, size_t stride, size_t rows) {
    for (size_t i = 0; i < TILE; i += 8 * ABREAST) {
        D8 s[TOGETHER][ABREAST];
        for (int k = 0; k < TOGETHER; k++)
            for (int v = 0; v < ABREAST; v++)
                s[k][v] = d8_load(sums + k * TILE + i + 8 * v);
        for (size_t r = 0; r < rows; r++) {
            D8 x[ABREAST];
            for (int v = 0; v < ABREAST; v++)
                x[v] = d8_load(wide + r * TILE + i + 8 * v);
            for (int k = 0; k < TOGETHER; k++) {
                D8 factor = d8_set(coefficients[r * stride + k]);
                for (int v = 0; v < ABREAST; v++)
                    s[k][v] = d8_fma(factor, x[v], s[k][v]);
            }
        }
        for (int k = 0; k < TOGETHER; k++)
            for (int v = 0; v < ABREAST; v++)
                d8_store(sums + k * TILE + i + 8 * v, s[k][v]);
    }
}

INLINE void widen(double *wide, const char *row, Dtype from) {
    for (size_t i = 0; i < TILE; i += 8)
        d8_store(wide + i, d8_from(row, i, from));
}

INLINE int narrow(char *out, const double *sums, Dtype into) {
    Mask bad = mask_none();
    for (size_t i = 0; i < TILE; i += 8) {
        D8 x = d8_load(sums + i);
        switch (into) {
        case F64:
            d8_store_f64(out + 8 * i, x, &bad);
            break;
        case F32:
            f8_store_f32(out + 4 * i, d8_narrow(x), &bad);
            break;
        case F16:
            f8_store_f16(out + 2 * i, d8_narrow(x), &bad);
            break;
        default:
            f8_store_bf16(out + 2 * i, d8_narrow(x), &bad);
        }
    }
    return mask_any(bad);
}

/* A switch, so that the dtype is a constant in each loop. */
#define FOR_DTYPE(dtype, CALL)                                                                                         \
    switch (dtype) {                                                                                                   \
    case F64:                                                                                                          \
        CALL(F64);                                                                                                     \
        break;                                                                                                         \
    case F32:                                                                                                          \
        CALL(F32);                                                                                                     \
        break;                                                                                                         \
    case F16:                                                                                                          \
        CALL(F16);                                                                                                     \
        break;                                                                                                         \
    default:                                                                                                           \
        CALL(BF16);                                                                                                    \
    }

INLINE int has_zero(const double *coefficients, size_t outputs, size_t stride, size_t rows) {
    int found = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < outputs; k++)
            found |= coefficients[r * stride + k] == 0;
    return found;
}

/* Add up to GROUP rows of a tile to `count` outputs. */
INLINE void add_rows(const Work *w, double *sums, size_t count, size_t k, const char *const *row, const double *wide,
                     size_t first, size_t rows) {
    const double *coefficients = w->coefficients + first * w->outputs + k;
    if (w->outputs == 1) {
#define CHAIN(dtype) chain(sums, row, coefficients, 1, rows, dtype)
        FOR_DTYPE(w->from, CHAIN)
#undef CHAIN
    } else if (count == TOGETHER && !has_zero(coefficients, count, w->outputs, rows)) {
        chains(sums, wide, coefficients, w->outputs, rows);
    } else {
        const char *each[GROUP];
        for (size_t r = 0; r < rows; r++)
            each[r] = (const char *)(wide + r * TILE);
        for (size_t j = 0; j < count; j++)
            chain(sums + j * TILE, each, coefficients + j, w->outputs, rows, F64);
    }
}

INLINE void begin_sums(const Work *w, double *sums, size_t k, size_t start, size_t n) {
    if (w->begins) {
        for (size_t i = 0; i < TILE; i += 8)
            d8_store(sums + i, d8_set(-0.0));
    } else {
        memset(sums, 0, TILE * sizeof(double));
        memcpy(sums, w->sums + k * w->elements + start, n * sizeof(double));
    }
}

INLINE void end_sums(const Work *w, const double *sums, size_t k, size_t start, size_t n) {
    char cut[TILE * sizeof(double)], *out;
    size_t size = itemsize(w->into);
    int bad = 0;
    if (!w->ends) {
        memcpy(w->sums + k * w->elements + start, sums, n * sizeof(double));
        return;
    }
    out = (char *)w->out[k] + start * size;
#define NARROW(dtype) bad = narrow(n == TILE ? out : cut, sums, dtype)
    FOR_DTYPE(w->into, NARROW)
#undef NARROW
    if (n != TILE)
        memcpy(out, cut, n * size);
    if (bad)
        w->nonfinite[k] = 1;
}

INLINE void average_tile(const Work *w, size_t start, size_t n) {
    double wide[GROUP * TILE];
    char cut[GROUP][TILE * sizeof(double)];
    size_t size = itemsize(w->from);
    for (size_t first = 0; first < w->rows; first += GROUP) {
        size_t rows = w->rows - first < GROUP ? w->rows - first : GROUP;
        const char *row[GROUP];
        for (size_t r = 0; r < rows; r++) {
            row[r] = (const char *)w->row[first + r] + start * size;
            if (n != TILE) { /* the end of a row: nothing beyond it is read */
                memset(cut[r], 0, sizeof cut[r]);
                row[r] = memcpy(cut[r], row[r], n * size);
            }
            if (w->outputs > 1) {
#define WIDEN(dtype) widen(wide + r * TILE, row[r], dtype)
                FOR_DTYPE(w->from, WIDEN)
#undef WIDEN
            }
        }
        for (size_t k = 0; k < w->outputs; k += TOGETHER) {
            size_t count = w->outputs - k < TOGETHER ? w->outputs - k : TOGETHER;
            double *sums = w->scratch + (w->rows > GROUP ? k * TILE : 0); /* one group: the same few again */
            for (size_t j = 0; j < count && first == 0; j++)
                begin_sums(w, sums + j * TILE, k + j, start, n);
            add_rows(w, sums, count, k, row, wide, first, rows);
            for (size_t j = 0; j < count && first + rows == w->rows; j++)
                end_sums(w, sums + j * TILE, k + j, start, n);
        }
    }
}

INLINE void average_tiles(const Work *w) {
    FloatMode before = exact_mode();
    for (size_t start = 0; start < w->elements; start += TILE)
        average_tile(w, start, w->elements - start < TILE ? w->elements - start : TILE);
    restore_mode(before);
}
