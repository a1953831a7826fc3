/* O_PATH descriptors of a file, a directory, a symbolic link and a socket. */
#include "tracee.h"

#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv)
{
    char text[PATH_MAX] = "", c;
    tr_init(argc, argv);
    close(MUST(open(tr_path("file"), O_CREAT | O_WRONLY, 0600)));
    MUST(symlink("nowhere", tr_path("link")));
    int file = MUST(open(tr_path("file"), O_PATH));
    int dir = MUST(open(tr_dir, O_PATH | O_DIRECTORY | O_CLOEXEC));
    int link = MUST(open(tr_path("link"), O_PATH | O_NOFOLLOW));
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int sock = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(chdir(tr_dir));
    strcpy(addr.sun_path, "sock");
    MUST(bind(sock, (struct sockaddr *)&addr, sizeof addr));
    close(sock);
    sock = MUST(open(tr_path("sock"), O_PATH));

    tr_hold();

    CHECK_EQ("flags of a file", O_PATH, fcntl(file, F_GETFL) & O_PATH);
    CHECK(read(file, &c, 1) == -1 && errno == EBADF, "an O_PATH descriptor can be read");
    CHECK_EQ("faccessat through the directory", 0, faccessat(dir, "file", F_OK, 0));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(dir, F_GETFD));
    MUST(readlinkat(link, "", text, sizeof text - 1));
    tr_check_str("target of the link", "nowhere", text);
    struct stat st;
    MUST(fstat(sock, &st));
    CHECK(S_ISSOCK(st.st_mode), "not a socket: mode 0%o", st.st_mode);
    return tr_pass(NULL);
}
