//! Full-screen programs on a pseudo-terminal whose master is inside the tree.

use std::process::Command;

use crate::{both_ways, Way};
use crate::kit::{need, Live, Stage};

/// Holds the master: types what files named `type.N` say, and counts what the screen gets.
const HOST: &str = r#"
import fcntl, os, pty, select, struct, sys, termios
os.environ["TERM"] = "xterm"
pid, master = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

def put(name, text):
    with open("." + name, "wb") as f:
        f.write(text)
    os.rename("." + name, name)

typed, got, screen = 1, 0, b""
while True:
    if select.select([master], [], [], 0.02)[0]:
        try:
            data = os.read(master, 65536)
        except OSError:
            break
        got += len(data)
        screen = (screen + data)[-8192:]
        put("screen", screen)
        put("got", str(got).encode())
    if os.path.exists(f"type.{typed}"):
        os.write(master, open(f"type.{typed}", "rb").read())
        typed += 1
status = os.waitpid(pid, 0)[1]
put("ended", str(os.waitstatus_to_exitcode(status)).encode())
"#;

fn start<'a>(stage: &'a Stage, program: &[&str]) -> Live<'a> {
    let host = stage.write("host.py", HOST);
    let mut command = Command::new(need("python3"));
    command.arg(host).arg(need(program[0])).args(&program[1..]);
    let live = stage.start(&mut command);
    stage.await_above("got", 100);
    live
}

fn screen_has(stage: &Stage, text: &str) {
    let plain = |screen: String| screen.contains(text).then_some(());
    crate::kit::eventually(&format!("{text:?} on the screen"), || stage.read("screen").and_then(plain));
}

fn vim_keeps_its_buffer_and_reacts(stage: &Stage, way: Way) {
    let live = start(stage, &["vim", "-u", "NONE", "-i", "NONE", "-n", "text"]);
    stage.write("type.1", "ione two\x1b:redraw!\r");
    screen_has(stage, "one two");
    let report = stage.checkpoint(live.pid(), &[]);
    stage.write("type.2", "A three\x1b:w! original\r");
    assert_eq!(stage.await_file("original"), "one two three\n", "the original");
    live.kill();
    std::fs::remove_file(stage.work("type.2")).unwrap();
    way.restore(stage, &report.frame, &[]);
    stage.write("type.2", "A four\x1b:w! restored\r");
    assert_eq!(stage.await_file("restored"), "one two four\n");
    stage.write("type.3", ":q!\r");
    assert_eq!(stage.await_file("ended"), "0");
}

fn top_goes_on_refreshing_and_reacts(stage: &Stage, way: Way) {
    let live = start(stage, &["top", "-d", "0.3"]);
    screen_has(stage, "Tasks");
    let report = stage.checkpoint(live.pid(), &[]);
    stage.await_above("got", stage.number("got").unwrap() + 500);
    live.kill();
    let _ = std::fs::remove_file(stage.work("got"));
    way.restore(stage, &report.frame, &[]);
    let first = stage.await_above("got", 0);
    stage.await_above("got", first + 500);
    stage.write("type.1", "h");
    screen_has(stage, "Help for Interactive Commands");
    stage.write("type.2", "\x1b");
    screen_has(stage, "Tasks");
    stage.write("type.3", "q");
    assert_eq!(stage.await_file("ended"), "0");
}

both_ways! { vim_keeps_its_buffer_and_reacts top_goes_on_refreshing_and_reacts }
