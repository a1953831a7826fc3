//! /proc/PID/stat.

use super::{bad, path, text, Pid};
use crate::error::Result;

/// The fields of /proc/PID/stat that a frame needs.
#[derive(Debug, Clone, Default)]
pub struct Stat {
    /// R, S, D, T, t, Z, X …
    pub state: char,
    /// Parent.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// Controlling terminal as a device number; 0 for none.
    pub tty: i32,
    /// Kernel flags (PF_*).
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Start time in clock ticks since boot: tells two users of one pid apart.
    pub start_time: u64,
    /// Code and stack addresses, in the order of the file.
    pub start_code: u64,
    /// End of the code.
    pub end_code: u64,
    /// Bottom of the stack.
    pub start_stack: u64,
    /// Start of data.
    pub start_data: u64,
    /// End of data.
    pub end_data: u64,
    /// Start of the brk heap.
    pub start_brk: u64,
    /// Start of the arguments.
    pub arg_start: u64,
    /// End of the arguments.
    pub arg_end: u64,
    /// Start of the environment.
    pub env_start: u64,
    /// End of the environment.
    pub env_end: u64,
    /// Signal sent to the parent at exit.
    pub exit_signal: i32,
    /// Where its first thread ran last.
    pub processor: usize,
    /// Wait status of a zombie.
    pub exit_code: i32,
}

const PF_KTHREAD: u64 = 0x0020_0000;

impl Stat {
    /// A thread of the kernel itself.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Running, or waiting for nothing but a processor.
    pub fn is_runnable(&self) -> bool {
        self.state == 'R'
    }

    /// Dead, not yet waited for.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Parses the text of a stat file.
pub fn parse(text: &str) -> Result<Stat> {
    fields(text).ok_or_else(|| bad("a stat file", text))
}

fn fields(text: &str) -> Option<Stat> {
    // The name may hold anything, even parentheses: count from the last one.
    let rest = &text[text.rfind(')')? + 1..];
    let words: Vec<&str> = rest.split_whitespace().collect();
    // words[0] is field 3 of proc(5).
    let raw = |field: usize| words.get(field - 3).copied();
    let num = |field: usize| raw(field).and_then(|w| w.parse::<i64>().ok().or_else(|| w.parse::<u64>().ok().map(|n| n as i64)));
    Some(Stat {
        state: raw(3)?.chars().next()?,
        ppid: num(4)? as Pid,
        pgid: num(5)? as Pid,
        sid: num(6)? as Pid,
        tty: num(7)? as i32,
        flags: num(9)? as u64,
        nice: num(19)? as i32,
        start_time: num(22)? as u64,
        start_code: num(26)? as u64,
        end_code: num(27)? as u64,
        start_stack: num(28)? as u64,
        exit_signal: num(38)? as i32,
        processor: num(39)? as usize,
        start_data: num(45)? as u64,
        end_data: num(46)? as u64,
        start_brk: num(47)? as u64,
        arg_start: num(48)? as u64,
        arg_end: num(49)? as u64,
        env_start: num(50)? as u64,
        env_end: num(51)? as u64,
        exit_code: num(52)? as i32,
    })
}

/// Reads /proc/PID/stat.
pub fn read(pid: Pid) -> Result<Stat> {
    parse(&text(&path(pid, "stat"))?)
}

/// Reads the stat file of one thread.
pub fn read_thread(pid: Pid, tid: Pid) -> Result<Stat> {
    parse(&text(&path(pid, &format!("task/{tid}/stat")))?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_with_parentheses() {
        let tail: Vec<String> = (5..=52).map(|n| n.to_string()).collect();
        let stat = super::parse(&format!("12 (a) b) S 4 {}\n", tail.join(" "))).unwrap();
        assert_eq!((stat.state, stat.ppid, stat.sid, stat.start_brk, stat.exit_code), ('S', 4, 6, 47, 52));
    }
}
