//! How far it is: a bar on the terminal, or lines of JSON for programs.

use std::io::{stderr, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{json, show};
use crate::transfer::{Progress, Status};

const TEMPLATE: &str = "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}{msg}";

/// Shown from the first news on; gone when dropped, so that what follows stands alone.
pub struct Bar(ProgressBar);

impl Bar {
    /// Nothing where standard error is no terminal, or nobody wants to see it.
    pub fn new(wanted: bool) -> Option<Bar> {
        (wanted && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::hidden();
            // One that does not parse would be a mistake of ours, and a plain bar does as well.
            bar.set_style(ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar()));
            Bar(bar)
        })
    }

    /// What moves it.
    pub fn progress(&self) -> Progress {
        let bar = self.0.clone();
        Progress::new(move |status| {
            if bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.set_length(status.expected.max(status.fed));
            bar.set_position(status.fed);
            bar.set_message(words(status));
            true
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// One line of JSON on standard error, again and again.
pub fn lines() -> Progress {
    Progress::new(|status| {
        // In one piece, so that it stays a line; that nobody reads it is no reason to stop.
        let _ = json(status).map(|line| stderr().write_all((line + "\n").as_bytes()));
        true
    })
}

fn words(status: &Status) -> String {
    let round = if status.round > 0 { format!(", round {}", status.round + 1) } else { String::new() };
    format!("{round}, {} stored", show::bytes(status.written))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_round_is_not_worth_a_word() {
        let status = Status { round: 0, fed: 5, expected: 10, written: 2048 };
        assert_eq!(words(&status), ", 2.0 KiB stored");
        assert_eq!(words(&Status { round: 1, ..status }), ", round 2, 2.0 KiB stored");
    }

    #[test]
    fn the_bar_follows_and_grows_with_what_was_not_announced() {
        let bar = Bar(ProgressBar::hidden());
        bar.0.set_style(ProgressStyle::with_template(TEMPLATE).unwrap());
        let progress = bar.progress();
        for (fed, expected, length) in [(5, 10, 10), (20, 10, 20)] {
            assert!(progress.tell(&Status { round: 0, fed, expected, written: 0 }));
            assert_eq!((bar.0.position(), bar.0.length()), (fed, Some(length)));
        }
    }
}
