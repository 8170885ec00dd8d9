/* The binary's main(): resumes the interpreter of the snapshot inside this file, and runs the program.
 *
 * As it is linked the file holds no snapshot yet. It then starts an interpreter, imports, and writes
 * the snapshot to the file that its argument names: the last step of the build. The interpreter's
 * configuration is CPython's isolated one: no environment variable of Python's counts, there is no
 * site, no path is searched, the locale is not looked at (text is UTF-8). Built-in modules and frozen
 * code come from generated tables (tables.c).
 */
#include "snapshot.h"

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern const struct _frozen *vmm_frozen_modules;

/* In place of the library's getpath.c, which looks for an installation all over the file system
 * (and for pyvenv.cfg and pybuilddir.txt beside the executable): there is none, and the
 * configuration below leaves nothing to be found out. The linker takes the first definition.
 */
PyStatus _PyConfig_InitPathConfig(PyConfig *config, int compute);
PyStatus _PyConfig_InitPathConfig(PyConfig *config, int compute)
{
    (void)config;
    (void)compute;
    return PyStatus_Ok();
}

#define NOWHERE L""
#define PREPARE "_vmm_prepare"
#define FAILED(code) ((void *)(intptr_t)(code))
#define STACK_ADDRESS (1ul << 40)
#define STACK_SIZE (8ul << 20)

static int fail(PyStatus status)
{
    if (PyStatus_IsExit(status))
        return status.exitcode;
    fprintf(stderr, "vllmd-hypervisor: error: the interpreter does not start: %s\n",
            status.err_msg ? status.err_msg : "no reason given");
    return 1;
}

static PyStatus preconfigure(void)
{
    PyPreConfig config;
    PyPreConfig_InitIsolatedConfig(&config);
    config.configure_locale = 0; /* no locale files are read */
    config.utf8_mode = 1;
    config.allocator = PYMEM_ALLOCATOR_MALLOC; /* heap.c; each object is a block of its own */
    return Py_PreInitialize(&config);
}

static PyStatus configure(PyConfig *config)
{
    PyStatus status;
    PyConfig_InitIsolatedConfig(config);
    config->site_import = 0;
    config->optimization_level = 2;
    config->write_bytecode = 0;
    config->parse_argv = 0;
    config->install_signal_handlers = 1; /* SIGPIPE is ignored, SIGINT is KeyboardInterrupt */
    config->pathconfig_warnings = 0;
    config->module_search_paths_set = 1; /* to nothing */
    config->use_frozen_modules = 1;
    /* The order of sets, and with it the snapshot, is the same in each build. */
    config->use_hash_seed = 1;
    config->hash_seed = 0;
    status = PyStatus_Ok();
    /* With all of these set nothing is searched for. */
#define SET(field, value) \
    if (!PyStatus_Exception(status)) \
        status = PyConfig_SetString(config, &config->field, value)
    SET(program_name, L"vllmd-hypervisor");
    SET(executable, NOWHERE);
    SET(base_executable, NOWHERE);
    SET(home, NOWHERE);
    SET(prefix, NOWHERE);
    SET(exec_prefix, NOWHERE);
    SET(base_prefix, NOWHERE);
    SET(base_exec_prefix, NOWHERE);
    SET(platlibdir, L"lib");
    SET(stdio_encoding, L"utf-8");
    SET(stdio_errors, L"backslashreplace");
    SET(filesystem_encoding, L"utf-8");
    SET(filesystem_errors, L"surrogateescape");
#undef SET
    return status;
}

/* The C library reads the time zone's file when it is first asked for any time, in UTC as well. With
 * this value of TZ it tries no file; what needs the zone later, such as localtime(), reads it then.
 */
static void skip_time_zone(void)
{
    const char *kept = getenv("TZ");
    setenv("TZ", ":", 1);
    tzset();
    kept ? setenv("TZ", kept, 1) : unsetenv("TZ");
}

/* A file as it is mapped into memory; NULL where it cannot be, or is none. */
static void *mapped(const char *path)
{
    struct stat facts;
    void *at = MAP_FAILED;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && fstat(fd, &facts) == 0)
        at = mmap(NULL, facts.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (fd >= 0)
        close(fd);
    return at == MAP_FAILED ? NULL : at;
}

/* An interpreter with all that is imported, written to a file: the arguments' first; the second, if
 * there is one, says how the heap's blocks are placed. Returns the exit code as a pointer.
 */
static void *take_snapshot(void *arguments)
{
    const char *path = ((char **)arguments)[0], *placing = ((char **)arguments)[1];
    void *places = NULL;
    PyConfig config;
    PyObject *module;
    PyStatus status;
    int number;
    /* The builder's signal dispositions would be in the snapshot. */
    for (number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    if (placing && !(places = mapped(placing))) {
        perror(placing);
        return FAILED(1);
    }
    skip_time_zone(); /* Python's time module asks for it */
    vmm_heap_open(places);
    PyImport_FrozenModules = vmm_frozen_modules;
    status = preconfigure();
    if (PyStatus_Exception(status))
        return FAILED(fail(status));
    status = configure(&config);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        return FAILED(fail(status));
    module = PyImport_ImportModule(PREPARE);
    if (!module) {
        PyErr_Print();
        return FAILED(1);
    }
    Py_DECREF(module);
    if (vmm_snapshot_take(path) < 0) {
        perror(path);
        return FAILED(1);
    }
    return NULL;
}

/* Take the snapshot in a thread whose stack is at a place of our choice: a thread's identity is an
 * address on its stack, and would be another one in each build. Returns the exit code.
 */
static int take_snapshot_in_thread(char **arguments)
{
    pthread_attr_t attributes;
    pthread_t thread;
    void *code = FAILED(1);
    void *stack = mmap((void *)STACK_ADDRESS, STACK_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (stack == MAP_FAILED) {
        perror("a stack for the snapshot's thread");
        return 1;
    }
    pthread_attr_init(&attributes);
    errno = pthread_attr_setstack(&attributes, stack, STACK_SIZE);
    if (!errno)
        errno = pthread_create(&thread, &attributes, take_snapshot, arguments);
    if (!errno)
        errno = pthread_join(thread, &code);
    if (errno)
        perror("the snapshot's thread");
    return (int)(intptr_t)code;
}

/* A list of bytes objects. */
static PyObject *list_of(char **strings)
{
    PyObject *item, *list = PyList_New(0);
    for (; list && *strings; strings++) {
        item = PyBytes_FromString(*strings);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* The exit code of the program; SystemExit is obeyed, another exception is printed. */
static int run(char **argv)
{
    int code = 1;
    PyObject *found = NULL, *arguments = list_of(argv), *variables = list_of(environ);
    PyObject *module = PyImport_ImportModule(PREPARE);
    if (arguments && variables && module)
        found = PyObject_CallMethod(module, "run", "OOi", arguments, variables,
                                    PyOS_getsig(SIGINT) == SIG_DFL);
    Py_XDECREF(module);
    Py_XDECREF(arguments);
    Py_XDECREF(variables);
    if (found) {
        code = (int)PyLong_AsLong(found);
        Py_DECREF(found);
    }
    if (PyErr_Occurred()) {
        PyErr_Print(); /* ends the process on SystemExit */
        code = 1;
    }
    return code;
}

int main(int argc, char **argv)
{
    if (!vmm_snapshot_is_taken())
        return argc == 2 || argc == 3 ? take_snapshot_in_thread(argv + 1) : 2;
    /* The interpreter soon wants 128 KiB of zeroes, which hardly anybody writes to. On the heap as the
     * C library has made it they would be written, one by one; without that they are a mapping.
     */
    malloc_trim(0);
    if (argc > 1 && strcmp(argv[1], "start") == 0)
        vmm_snapshot_touch();
    if (vmm_snapshot_resume() < 0) {
        perror("vllmd-hypervisor: error: the interpreter does not start");
        return 1;
    }
    skip_time_zone();
    /* The interpreter is not taken apart: that would touch all of the snapshot, for nothing. */
    return run(argv);
}
