"""Writing without waiting, who calls on a Unix socket, and files that may not grow for ever."""

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <limits.h>
    #include <stdio.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/stat.h>
    #include <unistd.h>
    static ssize_t vmm_write_now(int fd, const void *data, size_t length) {
        ssize_t rc = send(fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (rc < 0 && errno == ENOTSOCK) rc = write(fd, data, length);
        return rc;
    }
    static int vmm_caller_allowed(int fd) {
        struct ucred caller;
        socklen_t size = sizeof caller;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &caller, &size) < 0) return 0;
        return caller.uid == 0 || caller.uid == geteuid();
    }
    /* PATH becomes PATH.1 and so on up to PATH.keep, and fd a new PATH. The new file is there
       before any name changes, so that a lack of descriptors or rights leaves all as it was. */
    static int vmm_shift_files(int fd, const char *path, int keep) {
        char from[PATH_MAX], to[PATH_MAX], fresh[PATH_MAX];
        struct stat old;
        int n, made;
        if (keep < 1 || strlen(path) + 8 > sizeof fresh || fstat(fd, &old) < 0) return -1;
        snprintf(fresh, sizeof fresh, "%s.new", path);
        made = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_NOFOLLOW | O_NONBLOCK
                    | O_CLOEXEC, 0600);
        if (made < 0) return -1;
        for (n = keep; n > 1; n--) {
            snprintf(from, sizeof from, "%s.%d", path, n - 1);
            snprintf(to, sizeof to, "%s.%d", path, n);
            rename(from, to);
        }
        snprintf(to, sizeof to, "%s.1", path);
        if (fchmod(made, old.st_mode & 0777) < 0 || rename(path, to) < 0
            || rename(fresh, path) < 0 || dup3(made, fd, O_CLOEXEC) < 0) {
            unlink(fresh);
            close(made);
            return -1;
        }
        close(made);
        return 0;
    }
    static int vmm_make_room(int fd, const char *path, size_t length, long long limit, int keep) {
        struct stat file;
        if (fstat(fd, &file) < 0) return -1;
        if (!S_ISREG(file.st_mode) || !file.st_size
            || file.st_size + (long long)length <= limit) return 0;
        return vmm_shift_files(fd, path, keep) == 0 ? 0 : ftruncate(fd, 0);
    }
    """
    # As write(2), but never waits for the other end of a socket. Other descriptors wait unless
    # they are O_NONBLOCK.
    ssize_t vmm_write_now(int fd, const void *data, size_t length) nogil
    # Whether the other end of a Unix socket is this process's user or root (unix(7), SO_PEERCRED).
    bint vmm_caller_allowed(int fd) nogil
    # Before `length` bytes are appended to the file `path`, open as `fd`: when it would become
    # larger than `limit`, a new one takes its place (`fd` is that one then), and `keep` old ones
    # stay. Where the folder does not allow that the file starts anew. -1: there is no room.
    int vmm_make_room(int fd, const char *path, size_t length, long long limit, int keep) nogil
