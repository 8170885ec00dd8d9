/* The binary's main(): an interpreter that finds everything inside this file.
 *
 * Built-in modules and frozen code come from generated tables (tables.c). The configuration is
 * CPython's isolated one: no environment variable of Python's counts, there is no site, no path is
 * searched, the locale is not looked at (text is UTF-8).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

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
    return Py_PreInitialize(&config);
}

static PyStatus configure(PyConfig *config, int argc, char **argv)
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
    status = PyConfig_SetBytesArgv(config, argc, argv);
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

/* Python's time module asks for the local time zone when it is imported, for constants that nobody
 * uses here; the C library would read /etc/localtime. With TZ set it does not.
 */
static char *hide_time_zone(void)
{
    const char *found = getenv("TZ");
    char *kept = found ? strdup(found) : NULL;
    setenv("TZ", ":", 1); /* UTC, and the one value for which it tries no file */
    return kept;
}

static int restore_time_zone(char *kept)
{
    int rc = -1;
    PyObject *key = PyBytes_FromString("TZ"), *value = kept ? PyBytes_FromString(kept) : NULL;
    PyObject *module = PyImport_ImportModule("posix");
    PyObject *environment = module ? PyObject_GetAttrString(module, "environ") : NULL;
    if (key && environment && !(kept && !value))
        rc = value ? PyDict_SetItem(environment, key, value) : PyDict_DelItem(environment, key);
    Py_XDECREF(environment);
    Py_XDECREF(module);
    Py_XDECREF(value);
    Py_XDECREF(key);
    kept ? setenv("TZ", kept, 1) : unsetenv("TZ");
    free(kept);
    return rc;
}

/* The exit code of vmm.cli.main(); SystemExit is obeyed, another exception is printed. */
static int run(char *time_zone)
{
    int code = 1;
    PyObject *module = NULL, *found = NULL;
    if (restore_time_zone(time_zone) == 0)
        module = PyImport_ImportModule("_vmm_native_finder");
    if (module) {
        Py_DECREF(module);
        module = PyImport_ImportModule("vmm.cli");
    }
    if (module) {
        found = PyObject_CallMethod(module, "main", NULL);
        Py_DECREF(module);
    }
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
    PyConfig config;
    PyStatus status = preconfigure();
    int code;
    char *time_zone = hide_time_zone();
    PyImport_FrozenModules = vmm_frozen_modules;
    if (PyStatus_Exception(status))
        return fail(status);
    status = configure(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status))
        return fail(status);
    code = run(time_zone);
    if (Py_FinalizeEx() < 0 && code == 0)
        code = 1;
    return code;
}
