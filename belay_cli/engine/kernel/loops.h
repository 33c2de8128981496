/* One piece of work, as the module hands it to the loops of an instruction set. */

#ifndef BELAY_LOOPS_H
#define BELAY_LOOPS_H

#include <stddef.h>
#include <stdint.h>

typedef enum { F64, F32, F16, BF16 } Dtype;

/* outputs[k] <- round(sum over rows of coefficients[row][k] * rows[row]), elementwise, the rows in their order. */
typedef struct {
    size_t elements, rows, outputs;
    const void *const *row;     /* [rows], each `elements` of `from`; none aligned */
    const double *coefficients; /* [rows][outputs]; where it is 0, the row is left out */
    double *sums;               /* [outputs][elements], or NULL if the work begins and ends with these rows */
    int begins, ends;           /* whether these rows are the first of their sums, and the last */
    void *const *out;           /* [outputs], each `elements` of `into`; only if it ends */
    Dtype from, into;
    double *scratch;         /* [outputs rounded up to 4][TILE] */
    unsigned char *nonfinite; /* [outputs]: set to 1 where a result is NaN or infinite */
} Work;

#define TILE 128 /* elements at a time: rows, sums and results of so many stay in the first cache */

void average_avx512(const Work *work);
void average_avx2(const Work *work);
void average_neon(const Work *work);

#endif
