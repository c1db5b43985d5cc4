/* Window: a pinned buffer with single, untorn accesses. FastAccess: the accesses to guest memory that lie in one
 * region, without the interpreter in between.
 *
 * A method written in Python costs two to three accesses of a memoryview before it does anything, and a cffi function
 * as much again, so this speaks the limited C API. It knows no semantics beyond "inside one open region": everything
 * else (holes, borders, alignment, dirty tracking, wrong types, all errors) goes to the method of the same meaning in
 * bytes.py, which is the specification.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    Py_buffer buffer;
    int open;
    int tracked;
} Window;

typedef struct {
    uint64_t start;
    Window *window;
} Span;

typedef struct {
    PyObject_HEAD
    Py_ssize_t count, last;
    Span *spans;
} FastAccess;

static PyTypeObject *window_type;

/* One access where the host address is aligned. Sequentially consistent, which is every weaker ordering too: as an
 * acquire it is the partner of the releases in poke() here, and of the guest's own. */
static uint64_t peek(const char *at, int size)
{
    if ((uintptr_t)at % (unsigned)size == 0) {
        switch (size) {
        case 1: return __atomic_load_n((const uint8_t *)at, __ATOMIC_SEQ_CST);
        case 2: return __atomic_load_n((const uint16_t *)at, __ATOMIC_SEQ_CST);
        case 4: return __atomic_load_n((const uint32_t *)at, __ATOMIC_SEQ_CST);
        default: return __atomic_load_n((const uint64_t *)at, __ATOMIC_SEQ_CST);
        }
    }
    uint64_t value = 0;
    memcpy(&value, at, (size_t)size);
    return value;
}

/* One access where the host address is aligned. With `order` it is sequentially consistent (`store`), without a release
 * (`write_u16` and the like): what was written before is there for whoever loads the value, peek() or a guest's acquire.
 * A release does not keep later loads behind it: a ring that publishes an index and then looks at the peer's event
 * index needs pyvmm_fence() between the two. */
static void poke(char *at, int size, uint64_t value, int order)
{
    if ((uintptr_t)at % (unsigned)size) {
        memcpy(at, &value, (size_t)size);
        return;
    }
    if (order) {
        switch (size) {
        case 1: __atomic_store_n((uint8_t *)at, (uint8_t)value, __ATOMIC_SEQ_CST); return;
        case 2: __atomic_store_n((uint16_t *)at, (uint16_t)value, __ATOMIC_SEQ_CST); return;
        case 4: __atomic_store_n((uint32_t *)at, (uint32_t)value, __ATOMIC_SEQ_CST); return;
        default: __atomic_store_n((uint64_t *)at, value, __ATOMIC_SEQ_CST); return;
        }
    }
    switch (size) {
    case 1: __atomic_store_n((uint8_t *)at, (uint8_t)value, __ATOMIC_RELEASE); return;
    case 2: __atomic_store_n((uint16_t *)at, (uint16_t)value, __ATOMIC_RELEASE); return;
    case 4: __atomic_store_n((uint32_t *)at, (uint32_t)value, __ATOMIC_RELEASE); return;
    default: __atomic_store_n((uint64_t *)at, value, __ATOMIC_RELEASE); return;
    }
}

/* 2, 4 and 8 bytes between aligned places are one access on the side of the guest. */
static void copy_out(void *target, const char *at, size_t length)
{
    if (length == 2 || length == 4 || length == 8) {
        uint64_t value = peek(at, (int)length);
        memcpy(target, &value, length);
    } else
        memmove(target, at, length);
}

static void copy_in(char *at, const void *source, size_t length)
{
    if (length == 2 || length == 4 || length == 8) {
        uint64_t value = 0;
        memcpy(&value, source, length);
        poke(at, (int)length, value, 0);
    } else
        memmove(at, source, length);
}

static int is_width(long size)
{
    return size == 1 || size == 2 || size == 4 || size == 8;
}

static int fits(uint64_t value, int size)
{
    return size == 8 || !(value >> (8 * size));
}

/* ---- Window ---- */

static int window_open(Window *self, PyObject *source)
{
    if (self->open) {
        PyErr_SetString(PyExc_ValueError, "the window is open already");
        return -1;
    }
    if (PyObject_GetBuffer(source, &self->buffer, PyBUF_SIMPLE) < 0)
        return -1;
    self->open = 1;
    return 0;
}

static int window_init(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"buffer", "tracked", NULL};
    PyObject *source;
    int tracked = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|p", names, &source, &tracked) || window_open((Window *)object, source) < 0)
        return -1;
    ((Window *)object)->tracked = tracked;
    return 0;
}

static PyObject *window_reopen(PyObject *object, PyObject *source)
{
    if (window_open((Window *)object, source) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *window_release(PyObject *object, PyObject *unused)
{
    Window *self = (Window *)object;
    (void)unused;
    if (self->open) {
        self->open = 0;
        PyBuffer_Release(&self->buffer);
    }
    Py_RETURN_NONE;
}

static void window_dealloc(PyObject *object)
{
    Window *self = (Window *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->open)
        PyBuffer_Release(&self->buffer);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* The place of `size` bytes at `offset`, or NULL with an exception. */
static char *window_place(Window *self, PyObject *offset, PyObject *size, int *width, int writable)
{
    Py_ssize_t at = PyLong_AsSsize_t(offset);
    long bytes = PyLong_AsLong(size);
    if (PyErr_Occurred())
        return NULL;
    if (!is_width(bytes) || at < 0 || !self->open || at > self->buffer.len - bytes || (writable && self->buffer.readonly)) {
        PyErr_SetString(PyExc_ValueError, "no such place in an open window");
        return NULL;
    }
    *width = (int)bytes;
    return (char *)self->buffer.buf + at;
}

static PyObject *window_load(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    int size;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "load(offset, size)");
    char *at = window_place((Window *)object, args[0], args[1], &size, 0);
    return at ? PyLong_FromUnsignedLongLong(peek(at, size)) : NULL;
}

static PyObject *window_store(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    int size;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "store(value, offset, size)");
    char *at = window_place((Window *)object, args[1], args[2], &size, 1);
    if (!at)
        return NULL;
    uint64_t value = PyLong_AsUnsignedLongLong(args[0]);
    if (PyErr_Occurred())
        return NULL;
    if (!fits(value, size))
        return PyErr_Format(PyExc_OverflowError, "the value does not fit");
    poke(at, size, value, 1);
    Py_RETURN_NONE;
}

static PyObject *window_address(PyObject *object, void *unused)
{
    Window *self = (Window *)object;
    (void)unused;
    return PyLong_FromUnsignedLongLong(self->open ? (uintptr_t)self->buffer.buf : 0);
}

static PyMethodDef window_methods[] = {
    {"release", window_release, METH_NOARGS, "Let go of the buffer; idempotent."},
    {"reopen", window_reopen, METH_O, "Pin a buffer again after `release`."},
    {"load", (PyCFunction)(void (*)(void))window_load, METH_FASTCALL, "Load 1, 2, 4 or 8 bytes at once."},
    {"store", (PyCFunction)(void (*)(void))window_store, METH_FASTCALL, "Store 1, 2, 4 or 8 bytes at once."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef window_members[] = {
    {"address", window_address, NULL, "Where the buffer starts in this process, 0 once released.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot window_slots[] = {
    {Py_tp_init, window_init}, {Py_tp_dealloc, window_dealloc}, {Py_tp_methods, window_methods},
    {Py_tp_getset, window_members}, {Py_tp_doc, "Window(buffer, tracked=False): a pinned buffer."}, {0, NULL},
};
static PyType_Spec window_spec = {
    "pyvmm_memory._window.Window", sizeof(Window), 0, Py_TPFLAGS_DEFAULT, window_slots,
};

/* ---- FastAccess ---- */

static void drop_spans(FastAccess *self)
{
    Span *spans = self->spans;
    Py_ssize_t count = self->count;
    self->spans = NULL;
    self->count = self->last = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        Py_DECREF(spans[i].window);
    free(spans);
}

static void fast_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    drop_spans((FastAccess *)object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *fast_attach(PyObject *object, PyObject *pairs)
{
    FastAccess *self = (FastAccess *)object;
    Py_ssize_t count = PyList_Size(pairs);
    if (count < 0)
        return NULL;
    drop_spans(self);
    self->spans = calloc(count ? (size_t)count : 1, sizeof(Span));
    if (!self->spans)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PyList_GetItem(pairs, i), *window = pair ? PyTuple_GetItem(pair, 1) : NULL;
        if (!window)
            return NULL;
        if (Py_TYPE(window) != window_type)
            return PyErr_Format(PyExc_TypeError, "(start, Window) expected");
        uint64_t start = PyLong_AsUnsignedLongLong(PyTuple_GetItem(pair, 0));
        if (PyErr_Occurred())
            return NULL;
        Py_INCREF(window);
        self->spans[i] = (Span){start, (Window *)window};
        self->count = i + 1;
    }
    Py_RETURN_NONE;
}

static char *place_in(const Span *span, uint64_t address, uint64_t length, int writing)
{
    Window *window = span->window;
    if (!window->open || (writing && (window->tracked || window->buffer.readonly)))
        return NULL;
    uint64_t size = (uint64_t)window->buffer.len, offset = address - span->start;
    return address >= span->start && length <= size && offset <= size - length ? (char *)window->buffer.buf + offset : NULL;
}

/* Where `length` bytes at a guest address are, if one open region has them all; else NULL, never an exception. */
static char *place(FastAccess *self, PyObject *addr, uint64_t length, int writing)
{
    if (!self->count)
        return NULL;
    uint64_t address = PyLong_AsUnsignedLongLong(addr);
    if (address == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        return NULL;
    }
    char *at = place_in(&self->spans[self->last], address, length, writing);
    if (at)
        return at;
    Py_ssize_t low = 0, high = self->count;
    while (high - low > 1) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (self->spans[middle].start <= address)
            low = middle;
        else
            high = middle;
    }
    self->last = low;
    return place_in(&self->spans[low], address, length, writing);
}

static PyObject *get(PyObject *self, PyObject *addr, int size)
{
    char *at = place((FastAccess *)self, addr, (uint64_t)size, 0);
    return at ? PyLong_FromUnsignedLongLong(peek(at, size)) : PyObject_CallMethod(self, "_get", "Oi", addr, size);
}

static PyObject *set(PyObject *self, PyObject *const *args, Py_ssize_t count, int size)
{
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "write_u%d(value, addr) takes 2 arguments", 8 * size);
    char *at = place((FastAccess *)self, args[1], (uint64_t)size, 1);
    if (at) {
        uint64_t value = PyLong_AsUnsignedLongLong(args[0]);
        if (value == UINT64_MAX && PyErr_Occurred())
            PyErr_Clear();
        else if (fits(value, size)) {
            poke(at, size, value, 0);
            Py_RETURN_NONE;
        }
    }
    return PyObject_CallMethod(self, "_set", "OOi", args[0], args[1], size);
}

#define SCALAR(bits)                                                                               \
    static PyObject *read_u##bits(PyObject *self, PyObject *addr) { return get(self, addr, bits / 8); } \
    static PyObject *write_u##bits(PyObject *self, PyObject *const *args, Py_ssize_t count)        \
    {                                                                                              \
        return set(self, args, count, bits / 8);                                                   \
    }
SCALAR(8)
SCALAR(16)
SCALAR(32)
SCALAR(64)

/* Hand the call on to the specification, whatever its arguments. */
static PyObject *in_python(PyObject *self, const char *name, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    PyObject *result = NULL, *method = PyObject_GetAttrString(self, name);
    PyObject *positional = PyTuple_New(count), *keywords = names ? PyDict_New() : NULL;
    if (!method || !positional || (names && !keywords))
        goto out;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_INCREF(args[i]);
        PyTuple_SetItem(positional, i, args[i]);
    }
    for (Py_ssize_t i = 0; names && i < PyTuple_Size(names); i++)
        if (PyDict_SetItem(keywords, PyTuple_GetItem(names, i), args[count + i]) < 0)
            goto out;
    result = PyObject_Call(method, positional, keywords);
out:
    Py_XDECREF(method);
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

static PyObject *fast_load(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count == 2 && !names) {
        long size = PyLong_AsLong(args[1]);
        if (size == -1 && PyErr_Occurred())
            PyErr_Clear();
        if (is_width(size)) {
            char *at = place((FastAccess *)self, args[0], (uint64_t)size, 0);
            if (at && (uintptr_t)at % (unsigned long)size == 0)
                return PyLong_FromUnsignedLongLong(peek(at, (int)size));
        }
    }
    return in_python(self, "_load", args, count, names);
}

static PyObject *fast_store(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count == 3 && !names) {
        long size = PyLong_AsLong(args[2]);
        uint64_t value = PyLong_AsUnsignedLongLong(args[0]);
        if (PyErr_Occurred())
            PyErr_Clear();
        else if (is_width(size) && fits(value, (int)size)) {
            char *at = place((FastAccess *)self, args[1], (uint64_t)size, 1);
            if (at && (uintptr_t)at % (unsigned long)size == 0) {
                poke(at, (int)size, value, 1);
                Py_RETURN_NONE;
            }
        }
    }
    return in_python(self, "_store", args, count, names);
}

/* Copy all of a buffer within one region; the length, or -1 where Python has to look. */
static Py_ssize_t copy(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names, int writing)
{
    Py_buffer buffer;
    if (count != 2 || names)
        return -1;
    if (PyObject_GetBuffer(args[0], &buffer, writing ? PyBUF_SIMPLE : PyBUF_WRITABLE) < 0) {
        PyErr_Clear();
        return -1;
    }
    Py_ssize_t length = buffer.len;
    char *at = place((FastAccess *)self, args[1], (uint64_t)length, writing);
    if (!at)
        length = -1;
    else if (writing)
        copy_in(at, buffer.buf, (size_t)length);
    else
        copy_out(buffer.buf, at, (size_t)length);
    PyBuffer_Release(&buffer);
    return length;
}

static PyObject *fast_read(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t length = copy(self, args, count, names, 0);
    return length < 0 ? in_python(self, "_read", args, count, names) : PyLong_FromSsize_t(length);
}

static PyObject *fast_write(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    Py_ssize_t length = copy(self, args, count, names, 1);
    return length < 0 ? in_python(self, "_write", args, count, names) : PyLong_FromSsize_t(length);
}

static PyObject *fast_read_slice(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (copy(self, args, count, names, 0) < 0)
        return in_python(self, "_read_slice", args, count, names);
    Py_RETURN_NONE;
}

static PyObject *fast_write_slice(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (copy(self, args, count, names, 1) < 0)
        return in_python(self, "_write_slice", args, count, names);
    Py_RETURN_NONE;
}

#define QUICK(function) (PyCFunction)(void (*)(void))function
static PyMethodDef fast_methods[] = {
    {"attach_windows", fast_attach, METH_O, "Serve these (start, Window) pairs, sorted by start."},
    {"read_u8", read_u8, METH_O, "Return the 8-bit value at `addr`."},
    {"read_u16", read_u16, METH_O, "Return the little-endian 16-bit value at `addr`."},
    {"read_u32", read_u32, METH_O, "Return the little-endian 32-bit value at `addr`."},
    {"read_u64", read_u64, METH_O, "Return the little-endian 64-bit value at `addr`."},
    {"write_u8", QUICK(write_u8), METH_FASTCALL, "Store `value` as 8 bits at `addr`."},
    {"write_u16", QUICK(write_u16), METH_FASTCALL, "Store `value` as 16 little-endian bits at `addr`."},
    {"write_u32", QUICK(write_u32), METH_FASTCALL, "Store `value` as 32 little-endian bits at `addr`."},
    {"write_u64", QUICK(write_u64), METH_FASTCALL, "Store `value` as 64 little-endian bits at `addr`."},
    {"load", QUICK(fast_load), METH_FASTCALL | METH_KEYWORDS, "Load untorn: see `Bytes.load`."},
    {"store", QUICK(fast_store), METH_FASTCALL | METH_KEYWORDS, "Store untorn: see `Bytes.store`."},
    {"read", QUICK(fast_read), METH_FASTCALL | METH_KEYWORDS, "Fill a buffer up to a hole: see `Bytes.read`."},
    {"write", QUICK(fast_write), METH_FASTCALL | METH_KEYWORDS, "Copy a buffer up to a hole: see `Bytes.write`."},
    {"read_slice", QUICK(fast_read_slice), METH_FASTCALL | METH_KEYWORDS, "Fill a buffer: see `Bytes.read_slice`."},
    {"write_slice", QUICK(fast_write_slice), METH_FASTCALL | METH_KEYWORDS, "Copy a buffer: see `Bytes.write_slice`."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot fast_slots[] = {
    {Py_tp_dealloc, fast_dealloc}, {Py_tp_methods, fast_methods},
    {Py_tp_doc, "Accesses inside one region; everything else goes to the Python method."}, {0, NULL},
};
static PyType_Spec fast_spec = {
    "pyvmm_memory._window.FastAccess", sizeof(FastAccess), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, fast_slots,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_window", "Untorn accesses and the fast path of guest memory.", -1, NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__window(void)
{
    PyObject *self = PyModule_Create(&module);
    PyObject *fast = PyType_FromSpec(&fast_spec);
    window_type = (PyTypeObject *)PyType_FromSpec(&window_spec);
    if (self && fast && window_type && PyModule_AddObjectRef(self, "FastAccess", fast) == 0 &&
        PyModule_AddObjectRef(self, "Window", (PyObject *)window_type) == 0) {
        Py_DECREF(fast);
        return self;
    }
    Py_XDECREF(self);
    Py_XDECREF(fast);
    return NULL;
}
