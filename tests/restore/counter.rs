//! A program that counts, and what a test does with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::SigSet;
use stillframe::sys::children::start_clean;
use tempfile::TempDir;

use crate::common::{poll_until, wait_ended, wait_gone};

/// Writes "1\n", "2\n" … to its file, the number kept in memory alone.
const COUNTER: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    int fd = open(argv[1], O_CREAT | O_WRONLY, 0644);
    for (int n = 1; argc == 2; n++) {
        char line[32];
        snprintf(line, sizeof line, "%d\n", n);
        if (write(fd, line, strlen(line)) < 0)
            return 1;
        struct timespec nap = {0, 10000000};
        nanosleep(&nap, &nap);
    }
}
"#;

/// A counter that runs, and a store beside it.
pub struct Bench {
    pub dir: TempDir,
    pub child: Child,
}

impl Bench {
    pub fn start() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("counter.c");
        fs::write(&source, COUNTER).unwrap();
        let built = Command::new("cc").args(["-O1", "-o"]).args([&dir.path().join("counter"), &source]).status().unwrap();
        assert!(built.success());
        let mut command = Command::new(dir.path().join("counter"));
        command.arg(dir.path().join("data")).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = start_clean(&mut command, SigSet::empty()).spawn().unwrap();
        let bench = Bench { dir, child };
        bench.wait_lines(5);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn lines(&self) -> Vec<u64> {
        let text = fs::read_to_string(self.path("data")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim_matches('\0').parse().ok()).collect()
    }

    pub fn wait_lines(&self, count: usize) {
        poll_until(|| (self.lines().len() >= count).then_some(())).expect("the counter does not count");
    }

    /// Exit status and both outputs.
    pub fn stillframe(&self, args: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        let out = command.args(args).env("STILLFRAME_STORE", self.path("store")).stdin(Stdio::null()).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn checkpoint(&self, more: &[&str]) {
        let (ok, text) = self.stillframe(&[&["checkpoint", &self.pid().to_string(), "--name", "f"], more].concat());
        assert!(ok, "{text}");
    }

    /// Takes a frame at whose instant the counter ends.
    pub fn freeze(&mut self, more: &[&str]) {
        self.checkpoint(&[&["--then", "kill"], more].concat());
        self.child.wait().unwrap();
        wait_gone(&[self.pid()]).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Restores, lets the instance count on, and ends it; returns what was said.
    pub fn resume(&self, more: &[&str]) -> String {
        let before = self.lines().len();
        let (ok, text) = self.stillframe(&[&["restore", "f", "--detach"], more].concat());
        assert!(ok, "{text}");
        let grown = poll_until(|| (self.lines().len() > before + 3).then_some(()));
        let said = self.stillframe(&["inspect", "f"]).1;
        end(self.pid());
        grown.unwrap_or_else(|| panic!("the instance does not count on: {text}{said}"));
        text
    }

    pub fn refused(&self, more: &[&str], words: &[&str]) {
        let (ok, text) = self.stillframe(&[&["restore", "f", "--detach"], more].concat());
        assert!(!ok, "restored in spite of {words:?}");
        assert_eq!(text.lines().filter(|line| !line.contains("note:")).count(), 1, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!Path::new(&format!("/proc/{}", self.pid())).exists(), "something of it runs");
    }
}

/// Ends the restored counter, which has its old pid.
pub fn end(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    wait_ended(pid).unwrap();
    wait_gone(&[pid]).unwrap();
}

impl Drop for Bench {
    fn drop(&mut self) {
        // It may have ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
