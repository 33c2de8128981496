/* The module: checks what it is given, lets go of the interpreter, reads, and runs the loops that fit the processor. */

#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>
#ifndef _WIN32
#include <unistd.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

#include "crc32.h"
#include "loops.h"

typedef void (*Loops)(const Work *);

typedef struct {
    const char *name;
    Loops run;
} Kernel;

/* The best one first. */
static const Kernel KERNELS[] = {
#if defined(__x86_64__) && defined(__GNUC__)
    {"avx512", average_avx512},
    {"avx2", average_avx2},
#elif defined(__aarch64__) && defined(__GNUC__)
    {"neon", average_neon},
#endif
    {NULL, NULL},
};

static int runs_here(const char *name) {
#if defined(__x86_64__) && defined(__GNUC__)
    unsigned int a, b, c, d; /* not every compiler can be asked for F16C by name */
    int f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    int avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (strcmp(name, "avx512") == 0)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    return avx2;
#else
    return 1;
#endif
}

static Loops find_loops(const char *name) {
    for (const Kernel *kernel = KERNELS; kernel->name; kernel++)
        if (strcmp(kernel->name, name) == 0 && runs_here(name))
            return kernel->run;
    return NULL;
}

static PyObject *available(PyObject *module, PyObject *unused) {
    PyObject *names = PyList_New(0), *tuple;
    for (const Kernel *kernel = KERNELS; names && kernel->name; kernel++) {
        PyObject *name;
        if (!runs_here(kernel->name))
            continue;
        name = PyUnicode_FromString(kernel->name);
        if (!name || PyList_Append(names, name) < 0)
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    if (!names)
        return NULL;
    tuple = PyList_AsTuple(names);
    Py_DECREF(names);
    return tuple;
}

static size_t bytes_of(Dtype dtype) { return dtype == F64 ? 8 : dtype == F32 ? 4 : 2; }

/* What a call needs beside its arguments: room for pointers and sums, and the buffers that it holds meanwhile. */
typedef struct {
    Py_buffer *held;
    size_t count;
    const void **row;
    void **out;
    double *sums;
    unsigned char *nonfinite;
} Space;

/* Returns 0 with an exception set, as all that returns an int below. */
static int make_space(Space *space, Work *work) {
    size_t padded = (work->outputs + 3) / 4 * 4;
    space->held = PyMem_Calloc(work->rows + work->outputs + 4, sizeof *space->held);
    space->row = PyMem_Calloc(work->rows, sizeof *space->row);
    space->out = PyMem_Calloc(work->outputs, sizeof *space->out);
    space->sums = PyMem_Calloc(padded * TILE, sizeof *space->sums);
    space->nonfinite = PyMem_Calloc(work->outputs, 1);
    work->row = space->row;
    work->out = space->out;
    work->scratch = space->sums;
    work->nonfinite = space->nonfinite;
    if (space->held && space->row && space->out && space->sums && space->nonfinite)
        return 1;
    PyErr_NoMemory();
    return 0;
}

static void free_space(Space *space) {
    while (space->count)
        PyBuffer_Release(&space->held[--space->count]);
    PyMem_Free(space->held);
    PyMem_Free((void *)space->row);
    PyMem_Free(space->out);
    PyMem_Free(space->sums);
    PyMem_Free(space->nonfinite);
}

/* The memory of an object, of at least `needed` bytes, held until the space is freed. */
static void *hold(Space *space, PyObject *object, size_t needed, int writable, const char *what) {
    Py_buffer *view = &space->held[space->count];
    if (!object || PyObject_GetBuffer(object, view, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
        return NULL;
    space->count++;
    if ((size_t)view->len < needed) {
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes, not %zu", what, view->len, needed);
        return NULL;
    }
    return view->buf;
}

static int hold_rows(Space *space, const Work *work, PyObject *rows) {
    for (size_t r = 0; r < work->rows; r++) {
        PyObject *row = PySequence_GetItem(rows, (Py_ssize_t)r);
        space->row[r] = hold(space, row, work->elements * bytes_of(work->from), 0, "a row");
        Py_XDECREF(row); /* what is held keeps it */
        if (!space->row[r])
            return 0;
    }
    return 1;
}

static int hold_results(Space *space, const Work *work, PyObject *results) {
    for (size_t k = 0; work->ends && k < work->outputs; k++) {
        PyObject *result = PySequence_GetItem(results, (Py_ssize_t)k);
        space->out[k] = hold(space, result, work->elements * bytes_of(work->into), 1, "a result");
        Py_XDECREF(result);
        if (!space->out[k])
            return 0;
    }
    return 1;
}

static int hold_coefficients(Space *space, Work *work, PyObject *coefficients) {
    size_t needed = work->rows * work->outputs * sizeof(double);
    return (work->coefficients = hold(space, coefficients, needed, 0, "the coefficients")) != NULL;
}

static int dtype_of(const char *code, Dtype *dtype) {
    static const char *const CODES[] = {"F64", "F32", "F16", "BF16"};
    for (int i = 0; i < 4; i++)
        if (strcmp(code, CODES[i]) == 0) {
            *dtype = (Dtype)i;
            return 1;
        }
    PyErr_Format(PyExc_ValueError, "no dtype: %s", code);
    return 0;
}

/* The loops of this name, and what of the work does not lie in memory; NULL with an exception set. */
static Loops checked(Work *work, const char *kernel, const char *from, const char *into, Py_ssize_t rows,
                     Py_ssize_t outputs, Py_ssize_t elements, PyObject *results) {
    Loops loops = find_loops(kernel);
    if (!loops)
        PyErr_Format(PyExc_ValueError, "no kernel of this processor: %s", kernel);
    if (!loops || rows < 0 || !dtype_of(from, &work->from) || !dtype_of(into, &work->into))
        return NULL;
    if (rows < 1 || outputs < 1 || elements < 0 || elements > PY_SSIZE_T_MAX / 64 / outputs ||
        rows > PY_SSIZE_T_MAX / 64 / outputs) {
        PyErr_Format(PyExc_ValueError, "%zd rows of %zd elements into %zd outputs", rows, elements, outputs);
        return NULL;
    }
    if (results != Py_None && PySequence_Size(results) != outputs) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "results: there are %zd outputs", outputs);
        return NULL;
    }
    work->elements = (size_t)elements;
    work->rows = (size_t)rows;
    work->outputs = (size_t)outputs;
    return loops;
}

static PyObject *nonfinite_bytes(const Work *work) {
    return PyBytes_FromStringAndSize((const char *)work->nonfinite, (Py_ssize_t)work->outputs);
}

PyDoc_STRVAR(average_doc,
"average(kernel, source, into, outputs, elements, rows, coefficients, sums, results, begins) -> bytes\n\n"
"Add coefficients[r][k] * rows[r] to sums[k] for every r, in order; with results, round the sums into them.\n"
"The bytes are 1 for each output of which a result is NaN or infinite.");

static PyObject *average(PyObject *module, PyObject *args) {
    const char *kernel, *from, *into;
    PyObject *rows, *coefficients, *sums, *results, *nonfinite = NULL;
    Py_ssize_t elements, outputs;
    Loops loops;
    Work work = {0};
    Space space = {0};
    if (!PyArg_ParseTuple(args, "sssnnOOOOp", &kernel, &from, &into, &outputs, &elements, &rows, &coefficients, &sums,
                          &results, &work.begins))
        return NULL;
    loops = checked(&work, kernel, from, into, PySequence_Size(rows), outputs, elements, results);
    if (!loops)
        return NULL;
    work.ends = results != Py_None;
    if (make_space(&space, &work) && hold_rows(&space, &work, rows) && hold_results(&space, &work, results) &&
        hold_coefficients(&space, &work, coefficients) &&
        ((work.begins && work.ends) ||
         (work.sums = hold(&space, sums, work.outputs * work.elements * sizeof(double), 1, "the sums")))) {
        Py_BEGIN_ALLOW_THREADS;
        loops(&work);
        Py_END_ALLOW_THREADS;
        nonfinite = nonfinite_bytes(&work);
    }
    free_space(&space);
    return nonfinite;
}

#ifndef _WIN32
/* Fill one buffer; 0 if the file ends before that or cannot be read. */
static int fill(char *to, size_t count, int descriptor, off_t offset) {
    while (count) {
        ssize_t got = pread(descriptor, to, count, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return 0;
        to += got;
        count -= (size_t)got;
        offset += got;
    }
    return 1;
}

typedef struct {
    int descriptor;
    off_t offset;
} Place;

/* Where every row is read from, and the buffers between the files and the results. */
typedef struct {
    Work whole; /* all rows and elements; `sums` [outputs][block] */
    Place *place;
    char *row;    /* [held][block] */
    uint32_t *crc; /* [rows], the checksum of what is read of each so far; NULL where nobody asks */
    size_t held;  /* rows at a time */
    size_t block; /* elements at a time */
} Replay;

/* Work on one block: `start` counts elements. Returns the row that could not be read, or -1. */
static Py_ssize_t replay_block(Loops loops, const Replay *replay, size_t start, const void **row, void **out) {
    Work work = replay->whole;
    size_t from = bytes_of(work.from), into = bytes_of(work.into), rows = work.rows;
    work.elements = work.elements - start < replay->block ? work.elements - start : replay->block;
    work.row = row;
    work.out = out;
    for (size_t k = 0; k < work.outputs; k++)
        out[k] = (char *)replay->whole.out[k] + start * into;
    for (size_t first = 0; first < rows; first += work.rows) {
        work.rows = rows - first < replay->held ? rows - first : replay->held;
        work.begins = first == 0;
        work.ends = first + work.rows == rows;
        work.coefficients = replay->whole.coefficients + first * work.outputs;
        for (size_t r = 0; r < work.rows; r++) {
            const Place *place = &replay->place[first + r];
            char *to = replay->row + r * replay->block * from;
            if (!fill(to, work.elements * from, place->descriptor, place->offset + (off_t)(start * from)))
                return (Py_ssize_t)(first + r);
            if (replay->crc) /* while it is in the cache */
                replay->crc[first + r] =
                    belay_crc32(replay->crc[first + r], (const unsigned char *)to, work.elements * from);
            row[r] = to;
        }
        loops(&work);
    }
    return -1;
}

static int read_places(PyObject *places, Place *place, size_t count) {
    for (size_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(places, (Py_ssize_t)i);
        long long offset;
        int found = item && PyArg_ParseTuple(item, "iL", &place[i].descriptor, &offset);
        Py_XDECREF(item);
        if (!found)
            return 0;
        place[i].offset = (off_t)offset;
    }
    return 1;
}

PyDoc_STRVAR(replay_doc,
"replay(kernel, source, into, outputs, elements, places, coefficients, held, block, rows, sums, results, crcs)\n\n"
"results[k] = the rounded sum of coefficients[r][k] * what lies at places[r], (descriptor, offset), over all r.\n"
"`held` rows and `block` elements are read at a time, into rows [held][block], with sums [outputs][block].\n"
"crcs: None, or a checksum (u32) a place, of what was read before, which goes on with what is read.\n"
"Returns what `average` returns, or the number of the first row that could not be read.");

static PyObject *replay(PyObject *module, PyObject *args) {
    const char *kernel, *from, *into;
    PyObject *places, *coefficients, *rows, *sums, *results, *crcs, *done = NULL;
    Py_ssize_t elements, outputs, held, block, failed = -1;
    Loops loops;
    Replay all = {0};
    Work *work = &all.whole;
    if (!PyArg_ParseTuple(args, "sssnnOOnnOOOO", &kernel, &from, &into, &outputs, &elements, &places, &coefficients,
                          &held, &block, &rows, &sums, &results, &crcs))
        return NULL;
    loops = checked(work, kernel, from, into, PySequence_Size(places), outputs, elements, results);
    if (!loops)
        return NULL;
    if (held < 1 || block < 1 || block > PY_SSIZE_T_MAX / 64 / outputs || held > PY_SSIZE_T_MAX / 64 / block)
        return PyErr_Format(PyExc_ValueError, "%zd rows of %zd elements at a time", held, block);
    all.held = (size_t)held;
    all.block = (size_t)block;
    work->ends = 1;
    Space space = {0};
    all.place = PyMem_Calloc(work->rows, sizeof(Place));
    void **out = PyMem_Calloc(work->outputs, sizeof *out);
    if (!all.place || !out)
        PyErr_NoMemory();
    else if (make_space(&space, work) && read_places(places, all.place, work->rows) &&
             hold_results(&space, work, results) && hold_coefficients(&space, work, coefficients) &&
             (all.row = hold(&space, rows, all.held * all.block * bytes_of(work->from), 1, "the rows")) &&
             (work->sums = hold(&space, sums, work->outputs * all.block * sizeof(double), 1, "the sums")) &&
             (crcs == Py_None ||
              (all.crc = hold(&space, crcs, work->rows * sizeof(uint32_t), 1, "the checksums")))) {
        Py_BEGIN_ALLOW_THREADS;
        for (size_t start = 0; start < work->elements && failed < 0; start += all.block)
            failed = replay_block(loops, &all, start, space.row, out);
        Py_END_ALLOW_THREADS;
        done = failed < 0 ? nonfinite_bytes(work) : PyLong_FromSsize_t(failed);
    }
    free_space(&space);
    PyMem_Free(all.place);
    PyMem_Free(out);
    return done;
}
#endif

PyDoc_STRVAR(crc32_doc, "crc32(data, value) -> int\n\nThe CRC-32 of data, after bytes whose CRC-32 is `value`.");

static PyObject *crc32(PyObject *module, PyObject *args) {
    PyObject *data;
    Py_buffer view;
    unsigned int value;
    if (!PyArg_ParseTuple(args, "OI", &data, &value) || PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    value = belay_crc32(value, view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(value);
}

static PyMethodDef METHODS[] = {
    {"crc32", crc32, METH_VARARGS, crc32_doc},
    {"available", available, METH_NOARGS, "The kernels that this processor runs, the best one first."},
    {"average", average, METH_VARARGS, average_doc},
#ifndef _WIN32
    {"replay", replay, METH_VARARGS, replay_doc},
#endif
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_native", "The arithmetic of a replay, compiled.", 0, METHODS, SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&MODULE); }
